"""greso: prompts whose last groups were all pass or all fail are skipped with a growing chance."""

from __future__ import annotations

import numpy as np

from curriculum.arrays import Floats, Ints
from tests.bench.arms.base import Groups, Loader, Rollouts, Task

_EASY_RATE, _HARD_RATE = 0.98, 0.11  # a group's mean from which on, and up to which, it has no use
_TARGET_RATIO = np.array([0.25 / 3, 0.25 * 2 / 3])  # easy, hard
_START_PROBABILITY, _STEP, _RANGE = 0.5, 0.01, (0.05, 0.95)
_LEAST_KEPT = 0.01  # no prompt is skipped for ever
_FIRST_DRAW, _LEAST_DRAW, _SAFETY = 1.5, 0.25, 1.25  # batches: 384 and 64 of 256
_MAX_ROUNDS = 10


class Greso:
    """Skip a prompt with the probability ``1 - max(p_x ** z, .01)``.

    z is the length of its present streak of easy (x = easy) or hard groups. The first draw of a
    step is 1.5 B; groups without variance are dropped; until B remain, refills of
    ``1.25 missing / (1 - dropped share)`` prompts follow, between B / 4 and 1.5 B. After the first
    epoch, each step lowers p_x by .01 if the share of x among the groups is at its target (easy
    .25 / 3, hard .25 2 / 3) or above, else raises it by .01, within [.05, .95].

    Source: GRESO, Zheng et al. (2025), arXiv 2506.02177; Infini-AI-Lab/GRESO@b277843.
    Differs: 384, 256 and 64 prompts are scaled to B; a step gives up after ten rounds.
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._rng, self._loader = task, rng, Loader(len(task), rng)
        self.streak_N = np.zeros(len(task), dtype=np.int64)  # > 0 easy, < 0 hard
        self.kept_probability = np.full(2, _START_PROBABILITY)  # easy, hard

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        size, kept, seen = self._task.batch_size, Groups.none(), np.zeros(3, dtype=np.int64)
        want = int(_FIRST_DRAW * size)
        for _ in range(_MAX_ROUNDS):
            rolled = rollouts.sample(self._next(want), self._task.group_size)
            seen += self.observe(rolled)
            kept = Groups.join(kept, rolled.take(rolled.mixed_M))
            if len(kept) >= size:
                break
            dropped = 1.0 - rolled.mixed_M.mean()
            needed = (size - len(kept)) / max(1.0 - dropped, 1e-3) * _SAFETY
            want = int(np.clip(needed, _LEAST_DRAW * size, _FIRST_DRAW * size))
        if self._loader.epoch > 0:
            self.adapt(seen[:2] / seen.sum())
        return kept.take(slice(size))

    def keep_probability(self, index_M: Ints) -> Floats:
        """The chance that each prompt is not skipped."""
        streak_M = self.streak_N[index_M]
        base_M = np.where(streak_M > 0, *self.kept_probability)
        return np.maximum(base_M ** np.abs(streak_M), _LEAST_KEPT)

    def observe(self, groups: Groups) -> Ints:
        """Prolong or break the streaks; gives the number of easy, of hard and of other groups."""
        easy_M, hard_M = groups.rate_M >= _EASY_RATE, groups.rate_M <= _HARD_RATE
        before_M = self.streak_N[groups.index_M]
        after_M = np.where(easy_M, np.maximum(before_M, 0) + 1, 0)
        after_M = np.where(hard_M, np.minimum(before_M, 0) - 1, after_M)
        self.streak_N[groups.index_M] = after_M
        easy, hard = int(easy_M.sum()), int(hard_M.sum())
        return np.array([easy, hard, len(groups) - easy - hard])

    def adapt(self, ratio: Floats) -> None:
        """Move the two probabilities by the shares of easy and of hard groups."""
        change = np.where(ratio >= _TARGET_RATIO, -_STEP, _STEP)
        self.kept_probability = np.clip(self.kept_probability + change, *_RANGE)

    def _next(self, count: int) -> Ints:
        """The next prompts of the loader that are not skipped."""
        taken: list[Ints] = []
        while missing := count - sum(map(len, taken)):
            candidates = self._loader.next(missing)
            kept = self._rng.random(len(candidates)) < self.keep_probability(candidates)
            taken.append(candidates[kept])
        return np.concatenate(taken)
