"""Which prompts to sample only to learn their pass rate, and how often each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curriculum.allocate import attempts_for_first_pass
from curriculum.arrays import Floats, Ints
from curriculum.bands import Band, classify_bands
from curriculum.belief import Belief
from curriculum.config import SelectionConfig
from curriculum.errors import require
from curriculum.model import Model
from curriculum.pool import Pool, Reason, Selection
from curriculum.sampling import even_sample
from curriculum.worth import expected_gain, expected_mixed

_LOOKS = 1 << 16
"""Of a larger pool so many random prompts are looked at. A batch takes some hundred of them, and
the best hundred of 65,536 are worth nearly as much as those of a million."""
_SENTINEL_SHARE, _LONG_SHOT_SHARE = 0.1, 0.05
_SIZES: tuple[int, ...] = (4, 8)
_BAR_QUANTILE = 0.85
_FIRST_LOOK = 2.0
_CURIOSITY = 0.1
_LEAST_GAIN = 3e-4


@dataclass(frozen=True)
class ProbeBudget:
    """What may be spent on a batch of probes.

    Attributes:
        prompt_count: most prompts, >= 0.
        rollout_budget: most attempts in all, >= 0.
        attempt_count: attempts of each prompt, >= 1; None for as many as each is worth.
    """

    prompt_count: int
    rollout_budget: int
    attempt_count: int | None = None

    def __post_init__(self) -> None:
        require(self.prompt_count >= 0, "prompt_count", self.prompt_count, ">= 0")
        require(self.rollout_budget >= 0, "rollout_budget", self.rollout_budget, ">= 0")
        is_possible = self.attempt_count is None or self.attempt_count >= 1
        require(is_possible, "attempt_count", self.attempt_count, ">= 1")


def select_probes(
    model: Model,
    pool: Pool,
    config: SelectionConfig,
    budget: ProbeBudget,
    sentinels_S: Ints,
    rng: np.random.Generator,
) -> Selection:
    """The free prompts whose attempts are worth most.

    * Sentinels that have no group in the newest block yet, with a tenth of the budget at most.
    * Long shots, a twentieth: random prompts beyond the edge, with as many attempts as a first pass
      may take (`attempts_for_first_pass`).
    * With the rest, who gains most per attempt: prompts that are uncertain and possibly at the
      edge, because they are new or because the policy has moved since they were sampled. Who gains
      next to nothing is left alone.

    The gain of n attempts at a prompt with belief Beta(a, b) and variance v is

        gain = KG(n; bar) + v n / (a + b + n) / 10

    the knowledge gradient of `Worth`, for trainers, where the bar is the chance of a mixed group
    that the best 15% of the prompts have; and a tenth of the variance that they are expected to
    take away, for those who look at the pool.

    Args:
        model: fitted on the same blocks.
        pool: with the leases of now.
        config: of the run.
        budget: with an `attempt_count`, also who gains nothing is taken.
        sentinels_S: see `sentinels`.
        rng: every draw comes from it.
    """
    draft = Draft(budget)
    due_S = rng.permutation(_due(pool, sentinels_S, config.group_size))
    due_count = _places(_SENTINEL_SHARE * budget.rollout_budget, config.group_size, rng)
    due_S = due_S[:due_count]
    draft.take(due_S, np.full(len(due_S), config.group_size), Reason.SENTINEL)
    seen = _Candidates.of(model, pool, _sample_free(pool, due_S, rng), config)
    shots_K, attempts_K = seen.long_shots(_LONG_SHOT_SHARE * budget.rollout_budget, rng)
    draft.take(seen.indices_C[shots_K], attempts_K, Reason.LONG_SHOT)
    seen = seen.take(np.delete(np.arange(len(seen.indices_C)), shots_K))
    sizes, least, why = _SIZES, _LEAST_GAIN, "attempts at the others would tell next to nothing"
    if budget.attempt_count is not None:
        sizes, least, why = (budget.attempt_count,), 0.0, ""
    best_K, attempts_K = seen.by_gain(sizes, least, rng)
    draft.take(seen.indices_C[best_K], attempts_K, Reason.PROBE)
    return draft.finish(model, pool, why)


@dataclass(frozen=True)
class _Candidates:
    """C free prompts."""

    config: SelectionConfig
    indices_C: Ints
    belief: Belief
    attempts_C: Ints

    @staticmethod
    def of(model: Model, pool: Pool, indices_C: Ints, config: SelectionConfig) -> _Candidates:
        belief = pool.beliefs(model, indices_C)
        return _Candidates(config, indices_C, belief, pool.attempts_N[indices_C])

    def take(self, which_K: Ints) -> _Candidates:
        return _Candidates(
            self.config,
            self.indices_C[which_K],
            self.belief.take(which_K),
            self.attempts_C[which_K],
        )

    def long_shots(self, rollouts: float, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Which of them, and their attempts."""
        config = self.config
        low, high = config.edge_low, config.edge_high
        beyond_K = np.flatnonzero(
            classify_bands(self.belief, self.attempts_C, low, high) == Band.BEYOND
        )
        most = config.group_size * config.reach_attempt_factor
        beyond_K = rng.permutation(beyond_K)[: _places(rollouts, most, rng)]
        attempts_K = attempts_for_first_pass(
            self.belief.take(beyond_K), config.reach_chance, least=config.group_size, most=most
        )
        return beyond_K, attempts_K

    def by_gain(
        self, sizes: tuple[int, ...], least: float, rng: np.random.Generator
    ) -> tuple[Ints, Ints]:
        """Those that gain enough per attempt, the best first, ties at random; and the attempts at
        which each gains most of it."""
        group_size = self.config.group_size
        mixed_C = expected_mixed(self.belief, group_size)
        bar = float(np.quantile(mixed_C, _BAR_QUANTILE)) if len(mixed_C) else 0.0
        gain_JC = np.stack([self._gain(bar, size) / size for size in sizes])
        best_C = gain_JC.argmax(axis=0)
        gain_C = gain_JC.max(axis=0) * np.where(self.attempts_C == 0, _FIRST_LOOK, 1.0)
        order_C = np.lexsort((rng.random(len(gain_C)), -gain_C))
        order_C = order_C[gain_C[order_C] >= least]
        return order_C, np.array(sizes)[best_C[order_C]]

    def _gain(self, bar: float, size: int) -> Floats:
        belief = self.belief
        total_C = belief.alpha_N + belief.beta_N
        certainty_C = belief.sd**2 * size / (total_C + size)
        gain_C: Floats = expected_gain(belief, bar, self.config.group_size, size)
        return gain_C + _CURIOSITY * certainty_C


class Draft:
    """A batch of probes while it is put together."""

    def __init__(self, budget: ProbeBudget) -> None:
        self._budget = budget
        self._places, self._rollouts = budget.prompt_count, budget.rollout_budget
        self._parts: list[tuple[Ints, Ints, Reason]] = []
        self._ran_dry = False

    def take(self, indices_K: Ints, attempts_K: Ints, reason: Reason) -> None:
        """As many as there is room for, the first ones."""
        if self._budget.attempt_count is not None:
            attempts_K = np.full(len(indices_K), self._budget.attempt_count)
        spent_K = np.cumsum(attempts_K)
        count = min(int(np.searchsorted(spent_K, self._rollouts, "right")), self._places)
        self._parts.append((indices_K[:count], attempts_K[:count], reason))
        self._places -= count
        self._rollouts -= int(attempts_K[:count].sum())
        self._ran_dry = count == len(indices_K) and self._places > 0

    def finish(self, model: Model, pool: Pool, why: str) -> Selection:
        """The batch; `why` the pool has no more, which is said if the last part took all it had."""
        places = self._places if self._ran_dry else 0
        indices_B, attempts_B = (
            np.concatenate([part[column] for part in self._parts]).astype(np.int64)
            for column in (0, 1)
        )
        reasons = [np.full(len(part[0]), part[2], np.uint8) for part in self._parts]
        return Selection.of(
            pool.beliefs(model, indices_B),
            indices_B,
            attempt_counts_B=attempts_B,
            reasons_B=np.concatenate(reasons),
            shortfall=pool.shortfall(len(indices_B), places, why),
        )


def _due(pool: Pool, sentinels_S: Ints, group_size: int) -> Ints:
    """The free ones that were not sampled as often as a group in the newest block."""
    due_S = pool.free_N[sentinels_S]
    if pool.blocks:
        due_S &= pool.blocks[-1].attempts_N[sentinels_S] < group_size
    due: Ints = sentinels_S[due_S]
    return due


def _sample_free(pool: Pool, taken_K: Ints, rng: np.random.Generator) -> Ints:
    """All that are free and not taken, or those of a sample that begins anywhere."""
    is_open_N = pool.free_N.copy()
    is_open_N[taken_K] = False
    size = len(pool)
    seen = (even_sample(size, _LOOKS) + rng.integers(max(size, 1))) % max(size, 1)
    free: Ints = seen[is_open_N[seen]]
    return free


def _places(rollouts: float, each: int, rng: np.random.Generator) -> int:
    """Right on average, also below one place."""
    return int(rollouts / each + rng.random())
