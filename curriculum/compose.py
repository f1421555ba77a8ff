"""Composing a batch: reserves, domain shares, the strategy's choice, and what to do when dry."""

from dataclasses import dataclass, replace

import numpy as np

from curriculum.arrays import Ints
from curriculum.bands import Band, classify_bands
from curriculum.config import SelectionConfig
from curriculum.draft import Draft
from curriculum.errors import require
from curriculum.interval import credible_interval
from curriculum.pool import Pool, Reason, Selection
from curriculum.prior import Prior
from curriculum.strategies import STRATEGIES, Strategy
from curriculum.strategies.base import Choice
from curriculum.strategies.uniform import choose_longest_rested

_FILL = Strategy(choose=choose_longest_rested)
# Reserves are looked for among this many random prompts per place: a band rarer than one prompt in
# 64 gets fewer places than its share, which also keeps its few prompts from being worn out.
_LOOKS_PER_PLACE, _LEAST_LOOKS = 64, 1024
_FIRST_ACCEPTANCE = 0.3  # a guess for the first round; later rounds use what they saw
_SPARE = 1.25  # proposals above the expected need, so that mostly one round suffices


@dataclass(frozen=True)
class _Task:
    """What the steps of one composition share; only the draft changes."""

    draft: Draft
    pool: Pool
    prior: Prior
    config: SelectionConfig
    strategy: Strategy
    rng: np.random.Generator


def compose_batch(
    prior: Prior,
    pool: Pool,
    config: SelectionConfig,
    prompt_count: int,
    rng: np.random.Generator,
) -> Selection:
    """Choose up to `prompt_count` distinct free prompts; the same arguments give the same batch.

    In this order, while places are left: review and reach; the strategy's choice among rested
    prompts within the domain shares; the same without the shares, so that a domain that ran dry
    leaves its places to the others; resting prompts, longest rested first. A dry pool gives a
    smaller batch and says why.

    Args:
        prior: fitted on the same counts.
        pool: with the leases and servings of now.
        config: of the run.
        prompt_count: B >= 0.
        rng: every draw comes from it.

    Raises:
        InvalidInputError: a negative `prompt_count`.
    """
    require(prompt_count >= 0, "prompt_count", prompt_count, ">= 0")
    strategy = STRATEGIES[config.strategy]
    draft = Draft(pool, config, prompt_count, resting=strategy.reserves)
    task = _Task(draft, pool, prior, config, strategy, rng)
    if strategy.reserves and len(pool):
        _reserve(task)
    _propose(task)
    _choose(task)
    if config.domain_shares:
        draft.waive_shares()
        _choose(task)
    draft.waive_rest()
    _choose(replace(task, strategy=_FILL), Reason.FILL)
    return _describe(task)


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
    belief = task.pool.belief_at(candidates, task.prior)
    attempts_C = task.pool.attempts_N[candidates]
    band_C = classify_bands(belief, attempts_C, config.edge_low, config.edge_high)
    for band, reason, count in (
        (Band.BEYOND, Reason.REACH, reach),
        (Band.MASTERED, Reason.REVIEW, review),
    ):
        task.draft.take(_first_occurrences(candidates[band_C == band]), reason, count)


def _propose(task: _Task) -> None:
    """Successive draws in proportion to the weights, without weighing the whole pool.

    Prompts proposed uniformly and accepted with probability weight_i are independent draws in
    proportion to the weights (von Neumann 1951). Refusing those that are taken, not open or without
    a place leaves exactly the draw without replacement, wherever one stops. It stops when that
    would cost more than to choose among all, which is left to `_choose`.
    """
    weigh, rng = task.strategy.weigh, task.rng
    if weigh is None:
        return
    acceptance, budget = _FIRST_ACCEPTANCE, len(task.pool) // 2  # a proposal costs twice a pass
    while (missing := task.draft.missing_count) and acceptance > 0.0:
        size = int(_SPARE * missing / acceptance) + 32
        if (budget := budget - size) < 0:
            return
        proposed = task.draft.open_among(rng.integers(0, len(task.pool), size))
        weights = weigh(task.pool.belief_at(proposed, task.prior), task.config)
        accepted = proposed[rng.random(len(proposed)) < weights]
        acceptance = task.draft.take(_first_occurrences(accepted), Reason.EDGE) / size


def _choose(task: _Task, reason: Reason | None = None) -> None:
    """Let the strategy choose among all open prompts, group by group."""
    draft, strategy = task.draft, task.strategy
    if not draft.missing_count:
        return
    candidates = draft.all_open()
    for group in np.flatnonzero(draft.left_K).tolist():
        members, count = draft.of_group(candidates, group), int(draft.left_K[group])
        if count < len(members):
            choice = Choice(task.pool, task.prior, task.config, members, count)
            members = strategy.choose(choice, task.rng)
        draft.take(members, reason or (Reason.EDGE if strategy.reserves else Reason.UNIFORM))


def _describe(task: _Task) -> Selection:
    """The batch in random order, with what is believed of each prompt."""
    pool, config = task.pool, task.config
    indices_B, reasons_B = task.draft.taken()
    order = task.rng.permutation(len(indices_B))
    indices_B, reasons_B = indices_B[order], reasons_B[order]
    known_B = pool.successes_N[indices_B] + pool.failures_N[indices_B] >= 1.0
    reasons_B[(reasons_B == Reason.EDGE) & ~known_B] = Reason.EXPLORE
    belief = pool.belief_at(indices_B, task.prior)
    low_B, high_B = credible_interval(belief.alpha_N, belief.beta_N)
    factor_B = np.where(reasons_B == Reason.REACH, config.reach_attempt_factor, 1)
    return Selection(
        indices_B=indices_B,
        attempt_counts_B=config.group_size * factor_B,
        reasons_B=reasons_B,
        pass_rate_B=belief.mean,
        pass_rate_low_B=low_B,
        pass_rate_high_B=high_B,
        shortfall=shortfall(len(indices_B), task.draft.missing_count, pool),
    )


def shortfall(served: int, missing: int, pool: Pool) -> str:
    """Why a batch is smaller than asked; empty when none are missing."""
    if not missing:
        return ""
    leased = len(pool) - int(np.count_nonzero(pool.free_N))
    why = f"{leased} prompts are leased, the rest of the pool is empty"
    return f"{served} of {served + missing}: {why if leased else 'the pool holds no more prompts'}"


def _first_occurrences(indices_C: Ints) -> Ints:
    """The distinct indices, in the order of their first occurrence."""
    first = np.unique(indices_C, return_index=True)[1]
    return indices_C[np.sort(first)]


def warm_up() -> None:
    """Build the tables that a process's first batch would build otherwise, in about .4 s."""
    one, counts = np.ones(1), np.ones(1, np.int64)
    pool = Pool(one, one, counts, 0 * counts, ("",), -counts, one > 0, 0)
    config = SelectionConfig()
    compose_batch(pool.fit_prior(), pool, config, 1, np.random.default_rng(0))
