"""dapo: dynamic sampling, which rolls out until enough groups are mixed."""

from __future__ import annotations

import numpy as np

from tests.bench.arms.base import Groups, Loader, Rollouts, Task

_DRAWN_BATCHES = 3  # 3 B prompts a round
_MAX_ROUNDS = 10


class Dapo:
    """Draw 3 B prompts with G attempts each, keep the mixed, repeat until there are B.

    The surplus is thrown away; after ten rounds the step trains on what there is.

    Source: DAPO, Yu et al. (2025), arXiv 2503.14476, section 3.2; verl-recipe@48ea0a7.
    Differs: B and G are the benchmark's, not 512 and 16; where the source stops with an error after
    ten rounds, this trains on fewer groups.
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._loader = task, Loader(len(task), rng)

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        size, kept = self._task.batch_size, Groups.none()
        for _ in range(_MAX_ROUNDS):
            drawn = self._loader.next(_DRAWN_BATCHES * size)
            rolled = rollouts.sample(drawn, self._task.group_size)
            kept = Groups.join(kept, rolled.take(rolled.mixed_M))
            if len(kept) >= size:
                break
        return kept.take(slice(size))
