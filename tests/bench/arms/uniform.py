"""uniform: every prompt once before any twice."""

from __future__ import annotations

import numpy as np

from tests.bench.arms.base import Groups, Loader, Rollouts, Task


class Uniform:
    """B prompts without replacement per epoch, one group each, all of them trained on."""

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._loader = task, Loader(len(task), rng)

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        return rollouts.sample(self._loader.next(self._task.batch_size), self._task.group_size)
