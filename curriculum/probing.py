"""Which prompts to sample only to learn their pass rate, and how often each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curriculum.allocate import attempts_for_first_pass
from curriculum.arrays import Floats, Ints
from curriculum.bands import Band, classify_bands
from curriculum.belief import Belief
from curriculum.config import SelectionConfig
from curriculum.model import Model
from curriculum.pool import Pool, Reason, Selection
from curriculum.probe_draft import ProbeBudget, ProbeDraft
from curriculum.sampling import even_sample
from curriculum.worth import expected_gain, expected_mixed

_LOOKS = 1 << 16
"""Of a larger pool so many random prompts are looked at. A batch takes some hundred of them, and
the best hundred of 65,536 are worth nearly as much as those of a million."""
_SENTINEL_SHARE, _REACH_SHARE = 0.1, 0.05
# In simulated learners with as many probes as training rollouts: a bar at .8 to .9 saves a sixth of
# the rollouts, at .6 an eighth; looks of 4 alone or of 2 to 16, first looks worth as much as others
# or eight times that, and no curiosity, differ by a hundredth.
_SIZES: tuple[int, ...] = (4, 8)
_BAR_QUANTILE = 0.85
_FIRST_LOOK = 2.0
_CURIOSITY = 0.1
_LEAST_GAIN = 1e-3
"""Below, a prompt is left alone: mostly one that failed 16 times, or passed half of 8. A third of
this saves small pools 3% more rollouts, others nothing, and there is hardly ever an end of it."""


def select_probes(
    model: Model,
    pool: Pool,
    config: SelectionConfig,
    budget: ProbeBudget,
    due_S: Ints,
    rng: np.random.Generator,
) -> Selection:
    """The free prompts whose attempts are worth most.

    * Sentinels that are due, with `_SENTINEL_SHARE` of the budget.
    * Prompts that are uncertain and possibly at the edge, because they are new or
      because the policy has moved since they were sampled: by ``h max_n gain(n) / n`` with n in
      `_SIZES`, h = `_FIRST_LOOK` for those never sampled and 1 for others, while it is at least
      `_LEAST_GAIN`.
    * Beside these, with `_REACH_SHARE` of their attempts, random prompts beyond the edge, with as
      many attempts as a first pass may take (`attempts_for_first_pass`).

    Half of the pool is left to training, unless an `attempt_count` is given.

    Under Beta(a, b) with variance v, ``gain(n) = KG(n; bar) + c v n / (a + b + n)``: for trainers
    the knowledge gradient of `Worth`, whose bar is the chance of a mixed group at the
    `_BAR_QUANTILE` of the prompts; for whoever looks at the pool c = `_CURIOSITY` times the
    variance that is expected to go.

    Args:
        model: fitted on the same blocks.
        pool: with the leases of now.
        config: of the run.
        budget: with an `attempt_count`, also who gains nothing is taken.
        due_S: sentinels that had no group's attempts in the window yet, see `sentinels`.
        rng: every draw comes from it.
    """
    sizes = tuple(min(size, max(budget.rollout_budget, 1)) for size in _SIZES)
    least = _LEAST_GAIN
    why = "attempts at the others would tell next to nothing"
    spare = int(np.count_nonzero(pool.free_N)) - len(pool) // 2
    if budget.attempt_count is not None:
        sizes, least, why, spare = (budget.attempt_count,), 0.0, "", len(pool)
    draft = ProbeDraft(budget, spare)
    due_S = rng.permutation(due_S[pool.free_N[due_S]])
    due_S = due_S[: _whole(_SENTINEL_SHARE * budget.rollout_budget, config.group_size, rng)]
    draft.take(due_S, np.full(len(due_S), config.group_size), Reason.SENTINEL)
    seen = _Candidates.of(model, pool, _sample_free(pool, due_S, rng), config)
    best_K, attempts_K = seen.by_gain(sizes, least, rng)
    beside = min(int(attempts_K.sum()), budget.rollout_budget)
    reach_K, reach_attempts_K = seen.reach(_REACH_SHARE * beside, rng)
    draft.take(seen.indices_C[reach_K], reach_attempts_K, Reason.PROBE_REACH)
    is_left_K = ~np.isin(best_K, reach_K)
    draft.take(seen.indices_C[best_K[is_left_K]], attempts_K[is_left_K], Reason.PROBE)
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

    def reach(self, rollouts: float, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Which of them, and their attempts."""
        config = self.config
        low, high = config.edge_low, config.edge_high
        beyond_K = np.flatnonzero(
            classify_bands(self.belief, self.attempts_C, low, high) == Band.BEYOND
        )
        most = config.group_size * config.reach_attempt_factor
        beyond_K = rng.permutation(beyond_K)[: _whole(rollouts, most, rng)]
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
        variance_drop_C = belief.sd**2 * size / (total_C + size)
        gain_C: Floats = expected_gain(belief, bar, self.config.group_size, size)
        return gain_C + _CURIOSITY * variance_drop_C


def _sample_free(pool: Pool, taken_K: Ints, rng: np.random.Generator) -> Ints:
    """All that are free and not taken, or those of a sample that begins anywhere."""
    is_open_N = pool.free_N.copy()
    is_open_N[taken_K] = False
    size = len(pool)
    seen = (even_sample(size, _LOOKS) + rng.integers(max(size, 1))) % max(size, 1)
    free: Ints = seen[is_open_N[seen]]
    return free


def _whole(rollouts: float, each: int, rng: np.random.Generator) -> int:
    """Right on average, also below one place."""
    return int(rollouts / each + rng.random())
