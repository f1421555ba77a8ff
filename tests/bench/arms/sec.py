"""sec: a bandit over categories, paid by how much their groups teach."""

from __future__ import annotations

import numpy as np

from curriculum.arrays import Floats
from tests.bench.arms.base import Groups, Rollouts, Task

_MIXING, _TEMPERATURE = 0.5, 0.2  # a and tau [U]


class Sec:
    """Category by softmax(Q / tau), prompt uniform within it.

    ``Q_c <- a mean abs(advantage) + (1 - a) Q_c`` over the step's groups of c, from Q = 0, with
    ``advantage = (reward - mean) / sd`` within a group.

    Source: Self-Evolving Curriculum, Chen et al. (2025), arXiv 2505.14970 [P].
    Differs: categories are the task's domains; a and tau [U].
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._rng = task, rng
        self.value_D = np.zeros(task.domain_count)

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        task = self._task
        odds_D = np.exp((self.value_D - self.value_D.max()) / _TEMPERATURE)
        share_N = (odds_D / np.bincount(task.domain_N, minlength=task.domain_count))[task.domain_N]
        clocks_N = self._rng.standard_exponential(len(task)) / share_N
        count = min(task.batch_size, len(task))
        groups = rollouts.sample(np.argpartition(clocks_N, count - 1)[:count], task.group_size)
        self.observe(groups)
        return groups

    def observe(self, groups: Groups) -> None:
        """Pay the categories."""
        paid_M, domain_M = advantage_size(groups), self._task.domain_N[groups.index_M]
        for domain in np.unique(domain_M):
            mean = paid_M[domain_M == domain].mean()
            self.value_D[domain] += _MIXING * (mean - self.value_D[domain])


def advantage_size(groups: Groups) -> Floats:
    """Mean absolute advantage of each group: ``2 sqrt(r (1 - r))`` for rewards of 0 and 1.

    For graded rewards, of which only sum and spread are known, the same expression of the mean
    bounds it; a group without spread has none.
    """
    rate_M = np.clip(groups.rate_M, 0.0, 1.0)
    return np.where(groups.mixed_M, 2.0 * np.sqrt(rate_M * (1.0 - rate_M)), 0.0)
