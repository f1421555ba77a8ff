"""oracle: the true pass rates, which nobody has. The limit of choosing by the chance of mixing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from curriculum import mixed_probability_at
from curriculum.arrays import Floats
from tests.bench.arms.base import Groups, Rollouts, Task


class Oracle:
    """The B prompts with the largest true ``P(0 < passes < G)``; equal ones at random."""

    def __init__(
        self, task: Task, rng: np.random.Generator, *, true_pass_rate: Callable[[], Floats]
    ) -> None:
        self._task, self._rng, self._true_pass_rate = task, rng, true_pass_rate

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        shuffled = self._rng.permutation(len(self._task))
        mixed = mixed_probability_at(self._true_pass_rate()[shuffled], self._task.group_size)
        size = self._task.batch_size
        best = shuffled[np.argpartition(-mixed, size - 1)[:size]]
        return rollouts.sample(best, self._task.group_size)
