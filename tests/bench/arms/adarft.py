"""adarft: a difficulty known beforehand, and a target that follows the mean reward."""

from __future__ import annotations

import numpy as np

from curriculum.arrays import Floats, Ints
from tests.bench.arms.base import Groups, Rollouts, Task

_OFFLINE_ATTEMPTS = 128
_STEP, _SENSITIVITY, _WANTED_REWARD = 50.0, 2.0, 0.5


class Adarft:
    """The B prompts whose difficulty is nearest to a target T.

    ``d_i = 100 (1 - p128_i)``, from 128 attempts at every prompt before training, all charged to
    the first step; ``T <- clip(T + 50 tanh(2 (r - .5)), 0, 100)`` with the step's mean reward r,
    from T = 0.

    Source: AdaRFT, Shi et al. (2025), arXiv 2504.05520; uscnlp-lime/verl@bf2dd7e.
    Differs: B is the benchmark's, not 1024; equal distances fall at random.
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._rng = task, rng
        self._difficulty_N: Floats | None = None
        self.target = 0.0

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        if self._difficulty_N is None:
            offline = rollouts.sample(np.arange(len(self._task)), _OFFLINE_ATTEMPTS)
            self._difficulty_N = 100.0 * (1.0 - offline.rate_M)
        nearest = self.nearest(self._difficulty_N)
        groups = rollouts.sample(nearest, self._task.group_size)
        self.observe(float(groups.reward_M.sum() / groups.attempts_M.sum()))
        return groups

    def nearest(self, difficulty_N: Floats) -> Ints:
        """The B prompts nearest to the target."""
        shuffled = self._rng.permutation(len(difficulty_N))
        distance = np.abs(difficulty_N[shuffled] - self.target)
        size = self._task.batch_size
        return shuffled[np.argpartition(distance, size - 1)[:size]]

    def observe(self, mean_reward: float) -> None:
        """Move the target."""
        move = _STEP * np.tanh(_SENSITIVITY * (mean_reward - _WANTED_REWARD))
        self.target = float(np.clip(self.target + move, 0.0, 100.0))
