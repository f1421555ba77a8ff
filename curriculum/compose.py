"""Composing a batch: reserves, domain shares, the strategy's choice, and what to do when dry."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from curriculum.allocate import allocate_attempts, attempts_for_first_pass
from curriculum.arrays import Bytes, Ints
from curriculum.bands import Band, classify_bands
from curriculum.belief import Belief
from curriculum.config import SelectionConfig
from curriculum.draft import Draft
from curriculum.errors import require
from curriculum.model import Model
from curriculum.pool import PIECE_PROMPTS, Pool, Reason, Selection
from curriculum.shares import domain_shares
from curriculum.strategies import STRATEGIES, Strategy
from curriculum.strategies.base import Choice
from curriculum.strategies.uniform import choose_longest_rested

_FILL = Strategy(choose=choose_longest_rested)
# Reserves are looked for among this many random prompts per place: a band rarer than one prompt in
# 64 gets fewer places than its share, which also keeps its few prompts from being worn out.
_LOOKS_PER_PLACE, _LEAST_LOOKS = 64, 1024
_LOOKS = 2048  # prompts that a strategy is shown before it draws
_MOST_GROUPS = 4  # attempts that a budget may give one prompt, in groups
# To look at every prompt for each domain costs .1 s for a million prompts of a hundred domains, and
# a domain costs as much as some thousand prompts, however few it has.
_CHEAP_LOOKS, _LOOKS_PER_SHARE = 1 << 17, 4096  # the first are a millisecond
_ROUNDS_FOR_LEARNED = 8
_FIRST_ACCEPTANCE = 0.3  # a guess for the first round; later rounds use what they saw
_SPARE = 1.25  # proposals above the expected need, so that mostly one round suffices


@dataclass(frozen=True)
class _Task:
    """What the steps of one composition share; only the draft changes."""

    draft: Draft
    pool: Pool
    model: Model
    config: SelectionConfig
    strategy: Strategy
    rng: np.random.Generator


def compose_batch(
    model: Model,
    pool: Pool,
    config: SelectionConfig,
    prompt_count: int,
    rng: np.random.Generator,
    *,
    rollout_budget: int | None = None,
) -> Selection:
    """Choose up to `prompt_count` distinct free prompts; the same arguments give the same batch.

    In this order, while places are left: review and reach; the strategy's choice among rested
    prompts within the domain shares; the same without the shares, so that a domain that ran dry
    leaves its places to the others; resting prompts, longest rested first. A dry pool gives a
    smaller batch and says why.

    Args:
        model: fitted on the same blocks, see `Pool.fit`.
        pool: with the leases and servings of now.
        config: of the run.
        prompt_count: B >= 0.
        rng: every draw comes from it.
        rollout_budget: attempts to spend on the batch in all, allotted by `allocate_attempts`;
            prompts that get none are left out. None is a group for each.

    Raises:
        InvalidInputError: a negative `prompt_count` or `rollout_budget`.
    """
    require(prompt_count >= 0, "prompt_count", prompt_count, ">= 0")
    strategy = STRATEGIES[config.strategy]
    learned = domain_shares(config, pool.domains, model)
    shares = learned if strategy.reserves else config.domain_shares  # uniform follows nothing
    draft = Draft(pool, config, prompt_count, rng=rng, resting=strategy.reserves, shares=shares)
    task = _Task(draft, pool, model, config, strategy, rng)
    if strategy.reserves and len(pool):
        _reserve(task)
    if shares:
        _fill_shares(task, shares)
        draft.waive_shares()
    _propose(task)
    _choose(task)
    draft.waive_rest()
    _choose(replace(task, strategy=_FILL), Reason.FILL)
    return _describe(task, rollout_budget)


def _reserve(task: _Task) -> None:
    """Take the shares of mastered and of beyond prompts, looking at a random part of the pool."""
    config, rng, size = task.config, task.rng, len(task.pool)
    review, reach = (
        int(task.draft.missing_count * share + rng.random())  # right on average if below one place
        for share in (config.review_share, config.reach_share)
    )
    looks = max(_LOOKS_PER_PLACE * (review + reach), _LEAST_LOOKS)
    seen = rng.integers(0, size, looks) if looks < size else rng.permutation(size)
    candidates = task.draft.open_among(seen)
    belief = task.pool.beliefs(task.model, candidates)
    attempts_C = task.pool.attempts_N[candidates]
    band_C = classify_bands(belief, attempts_C, config.edge_low, config.edge_high)
    for band, reason, count in (
        (Band.BEYOND, Reason.REACH, reach),
        (Band.MASTERED, Reason.REVIEW, review),
    ):
        task.draft.take(_first_occurrences(candidates[band_C == band]), reason, count)


def _propose(task: _Task, most_rounds: int = sys.maxsize) -> None:
    """Successive draws in proportion to the weights, without weighing the whole pool.

    Prompts proposed uniformly and accepted with probability weight_i are independent draws in
    proportion to the weights (von Neumann 1951). Refusing those that are taken, not open or without
    a place leaves exactly the draw without replacement, wherever one stops. It stops when that
    would cost more than to choose among all, which is left to `_choose`.
    """
    rng = task.rng
    if task.strategy.appraise is None or not len(task.pool) or not task.draft.missing_count:
        return
    looked = task.draft.open_among(rng.integers(0, len(task.pool), _LOOKS))
    if not len(looked):
        return
    count = task.draft.missing_count * _LOOKS // len(task.pool)
    choice = Choice(task.pool, task.model, task.config, looked, count)
    weigh = task.strategy.appraise(choice, rng)
    acceptance, budget = _FIRST_ACCEPTANCE, len(task.pool) // 2  # a proposal costs twice a pass
    for _ in range(most_rounds):
        missing = task.draft.missing_count
        if not missing or not acceptance:
            return
        size = min(int(_SPARE * missing / acceptance) + 32, PIECE_PROMPTS)
        if (budget := budget - size) < 0:
            return
        proposed = task.draft.open_among(rng.integers(0, len(task.pool), size))
        accepted = proposed[rng.random(len(proposed)) < weigh(proposed)]
        acceptance = task.draft.take(_first_occurrences(accepted), Reason.EDGE) / size


def _fill_shares(task: _Task, shares: Mapping[str, float]) -> None:
    """Fill the places that belong to a domain, or to the domains without a share of their own;
    where there are none of these, their places wait for whoever comes."""
    has_others = any(domain not in shares for domain in task.pool.domains)
    held = 0 if has_others else int(task.draft.left_K[-1])
    task.draft.left_K[-1] -= held
    # What is learned is no promise: where it would be dear, domains of few prompts leave places.
    looks = (len(task.pool) + _LOOKS_PER_SHARE) * len(shares)
    is_strict = bool(task.config.domain_shares) or looks <= _CHEAP_LOOKS
    if is_strict:
        _propose(task)
        _choose(task)
    else:
        _propose(task, _ROUNDS_FOR_LEARNED)
    task.draft.left_K[-1] += held


def _choose(task: _Task, reason: Reason | None = None) -> None:
    """Let the strategy choose among all open prompts, share by share."""
    draft, strategy = task.draft, task.strategy
    if not draft.missing_count:
        return
    candidates = draft.all_open()
    for share in np.flatnonzero(draft.left_K).tolist():
        members, count = draft.of_share(candidates, share), int(draft.left_K[share])
        if count < len(members):
            choice = Choice(task.pool, task.model, task.config, members, count)
            members = strategy.choose(choice, task.rng)
        draft.take(members, reason or (Reason.EDGE if strategy.reserves else Reason.UNIFORM))


def _describe(task: _Task, rollout_budget: int | None) -> Selection:
    """The batch in random order, with its attempts and what is believed of each prompt."""
    pool, missing = task.pool, task.draft.missing_count
    indices_B, reasons_B = task.draft.taken()
    order = task.rng.permutation(len(indices_B))
    indices_B, reasons_B = indices_B[order], reasons_B[order]
    reasons_B[(reasons_B == Reason.EDGE) & (pool.attempts_N[indices_B] == 0)] = Reason.EXPLORE
    belief = pool.beliefs(task.model, indices_B)
    attempts_B = _attempts(task.config, reasons_B, belief)
    shortfall = pool.shortfall(len(indices_B), missing)
    if rollout_budget is not None:
        attempts_B = _allot(task, indices_B, reasons_B, attempts_B, belief, rollout_budget)
        kept = attempts_B > 0
        if not kept.all():
            served = f"{kept.sum()} of {len(kept) + missing}"
            shortfall = f"{served}: rollout_budget={rollout_budget} is spent"
        indices_B, reasons_B, attempts_B = indices_B[kept], reasons_B[kept], attempts_B[kept]
        belief = belief.take(kept)
    return Selection.of(
        belief,
        indices_B,
        attempt_counts_B=attempts_B,
        reasons_B=reasons_B,
        shortfall=shortfall,
    )


def _attempts(config: SelectionConfig, reasons_B: Bytes, belief: Belief) -> Ints:
    """A group for each; for long shots as many as show a pass with the chance wanted."""
    attempts_B = np.full(len(reasons_B), config.group_size, dtype=np.int64)
    reach_B = reasons_B == Reason.REACH
    attempts_B[reach_B] = attempts_for_first_pass(
        belief.take(reach_B),
        config.reach_chance,
        least=config.group_size,
        most=config.group_size * config.reach_attempt_factor,
    )
    return attempts_B


def _allot(
    task: _Task,
    indices_B: Ints,
    reasons_B: Bytes,
    attempts_B: Ints,
    belief: Belief,
    rollout_budget: int,
) -> Ints:
    """The budget by marginal gain. Long shots have their attempts first, as far as their share of
    the batch is one of the budget."""
    config, most = task.config, task.config.group_size * _MOST_GROUPS
    reach_B = reasons_B == Reason.REACH
    attempts_B = np.minimum(attempts_B, most)
    for_reach = int(rollout_budget * config.reach_share)
    reach_B &= np.cumsum(np.where(reach_B, attempts_B, 0)) <= for_reach
    cost_B = task.pool.look(indices_B[~reach_B], task.model).relative_cost() ** config.token_weight
    attempts_B[~reach_B] = allocate_attempts(
        belief.take(~reach_B),
        rollout_budget - int(attempts_B[reach_B].sum()),
        most=most,
        cost_B=cost_B,
    )
    return attempts_B


def _first_occurrences(indices_C: Ints) -> Ints:
    """The distinct indices, in the order of their first occurrence."""
    first = np.unique(indices_C, return_index=True)[1]
    return indices_C[np.sort(first)]


def warm_up() -> None:
    """Build the tables that a process's first batch would build otherwise, in about .4 s."""
    one = np.ones(1, np.int64)
    pool = Pool((), one, 0 * one, ("",), -one, one > 0, 0)
    config = SelectionConfig()
    compose_batch(pool.fit(), pool, config, 1, np.random.default_rng(0))
