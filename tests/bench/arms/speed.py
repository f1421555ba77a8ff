"""speed: a small screening group first, the rest only for those that came out mixed."""

from __future__ import annotations

import numpy as np

from tests.bench.arms.base import Groups, Loader, Rollouts, Task

_SCREEN_ATTEMPTS = 4
_GROUP_SCALE = 3  # 24 attempts in all, where the usual group has 8
_SCREENED_PER_TRAINED = 4  # 64 screened, 16 trained on
_MAX_ROUNDS = 10


class Speed:
    """Screen new prompts with 4 attempts; those with a spread get 20 more and are trained on.

    As many attempts are trained on per step as by the others: ``B G / 24`` prompts with 24 each,
    out of rounds of four times as many screened. What is left over waits for the next step.

    Source: SPEED, Zhang et al. (2025), arXiv 2506.09016; Zanette-Labs/speed-rl@80e47b5.
    Differs: 24 attempts are 3 G for any G; a step gives up after ten rounds.
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._loader = task, Loader(len(task), rng)
        self._total_attempts = _GROUP_SCALE * task.group_size
        self._trained_count = max(task.batch_size // _GROUP_SCALE, 1)
        self._waiting = Groups.none()

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        for _ in range(_MAX_ROUNDS):
            if len(self._waiting) >= self._trained_count:
                break
            drawn = self._loader.next(_SCREENED_PER_TRAINED * self._trained_count)
            screened = rollouts.sample(drawn, _SCREEN_ATTEMPTS)
            qualified = screened.take(screened.mixed_M)
            grown = rollouts.extend(qualified, self._total_attempts - _SCREEN_ATTEMPTS)
            self._waiting = Groups.join(self._waiting, grown)
        batch = self._waiting.take(slice(self._trained_count))
        self._waiting = self._waiting.take(slice(self._trained_count, None))
        return batch
