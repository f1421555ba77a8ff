"""pcl: a value model predicts the pass rate of candidates."""

from __future__ import annotations

import numpy as np

from curriculum.arrays import Floats, Ints
from tests.bench.arms.base import Groups, Rollouts, Task, embed

_CANDIDATE_RATIO = 8  # k [U]
_RATE, _PROMPT_RATE = 0.2, 1.0  # of the stand-in for the authors' value model [U]


class Pcl:
    """Of k B uniform prompts the B whose predicted value is nearest to 1/2.

    The value model learns from the step's mean rewards, so it lags one step behind. It stands in
    for the authors' language model: ``v_i = sigmoid(c + w . x_i + u_i)`` by gradient steps on the
    cross-entropy, x the features and domain, u_i what it remembers of the prompt itself.

    Source: Prompt Curriculum Learning, Gao et al. (2025), arXiv 2510.01135 [P].
    Differs: k and the value model [U].
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._rng = task, rng
        self._input_NK = embed(task)
        self._constant, self._weight_K = 0.0, np.zeros(self._input_NK.shape[1])
        self._own_N = np.zeros(len(task))

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        count = min(_CANDIDATE_RATIO * self._task.batch_size, len(self._task))
        candidates = self._rng.choice(len(self._task), count, replace=False)
        distance_C = np.abs(self.value(candidates) - 0.5)
        nearest = np.argsort(distance_C, kind="stable")[: self._task.batch_size]
        groups = rollouts.sample(candidates[nearest], self._task.group_size)
        self.observe(groups)
        return groups

    def value(self, index_M: Ints) -> Floats:
        """The predicted pass rates."""
        logit_M = self._constant + self._input_NK[index_M] @ self._weight_K + self._own_N[index_M]
        return 1.0 / (1.0 + np.exp(-logit_M))

    def observe(self, groups: Groups) -> None:
        """One gradient step."""
        error_M = groups.rate_M - self.value(groups.index_M)
        self._constant += _RATE * error_M.mean()
        self._weight_K += _RATE * (error_M @ self._input_NK[groups.index_M]) / len(groups)
        self._own_N[groups.index_M] += _PROMPT_RATE * error_M
