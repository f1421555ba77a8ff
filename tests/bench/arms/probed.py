"""edge with a prober beside it, which samples what the server would give it."""

from __future__ import annotations

import numpy as np

from curriculum import ProbeBudget, select_probes, sentinels
from tests.bench.arms.base import Groups, Rollouts, Task
from tests.bench.arms.edge import Edge


class Probed(Edge):
    """The product with a prober that makes so many rollouts for each of the trainer's.

    Args:
        share: rollouts of the prober per rollout of the trainer.
        on_spare_capacity: whether they cost nothing; else they are charged like the trainer's.
    """

    def __init__(
        self, task: Task, rng: np.random.Generator, *, share: float, on_spare_capacity: bool
    ) -> None:
        super().__init__(task, rng)
        self._share, self._on_spare_capacity = share, on_spare_capacity
        self._sentinels_S = sentinels(task.domain_N, task.domain_count, 0)
        self._left = 0.0

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        groups, size = super().step(policy_step, rollouts), self._task.group_size
        self._left = min(self._left, size) + self._share * float(groups.attempts_M.sum())
        pool = self.pool(policy_step)
        if self.model is None or self._left < size:
            return groups
        budget = ProbeBudget(int(self._left), int(self._left))
        fixed_S = self._sentinels_S
        due_S = fixed_S[pool.blocks[-1].attempts_N[fixed_S] < size]
        chosen = select_probes(self.model, pool, self.config, budget, due_S, self.rng)
        probes = rollouts.sample(
            chosen.indices_B,
            chosen.attempt_counts_B,
            on_spare_capacity=self._on_spare_capacity,
        )
        self.ledger.add(policy_step, probes, probed=True)
        self._left -= float(probes.attempts_M.sum())
        return groups
