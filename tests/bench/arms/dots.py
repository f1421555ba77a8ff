"""dots: pass rates predicted from a few references by attention, and half a batch of old groups."""

from __future__ import annotations

import numpy as np

from curriculum.arrays import Floats, Ints
from tests.bench.arms.base import Groups, Rollouts, Task, embed

_PERIOD_STEPS = 2
_REFERENCE_SHARE = 0.5  # of B: 256 of 512
_TEMPERATURE = 1e-3
_FRESH_SHARE = 0.5


class Dots:
    """Draw by ``P(i) ~ exp(-abs(q_i - 1/2) / .001)`` without replacement, q_i a predicted rate.

    Every second step B / 2 random references are rolled out, G attempts each, and

        q_i = sum_r softmax_r(x_i . x_r / sqrt(K)) rate_r

    over their embeddings x. Half the batch is fresh, half comes from the last B mixed groups, first
    in first out.

    Source: DOTS and RR, Sun et al. (2025), arXiv 2506.05316; ASTRAL-Group/
    data-efficient-llm-rl@59df918.
    Differs: the embedding is the task's features and domain, where the authors train an adapter on
    a language model's; which half of the buffer is used is drawn at random [U].
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._rng, self._age_steps = task, rng, 0
        self._embedding_NK = embed(task)
        self._predicted_N = np.full(len(task), 0.5)
        self._buffer = Groups.none()

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        size = self._task.batch_size
        if self._age_steps % _PERIOD_STEPS == 0:
            self._refer(rollouts)
        self._age_steps += 1
        old = self._old(size - int(_FRESH_SHARE * size))
        fresh = rollouts.sample(self._draw(size - len(old)), self._task.group_size)
        self._buffer = Groups.join(self._buffer, fresh.take(fresh.mixed_M)).take(slice(-size, None))
        return Groups.join(fresh, old)

    def _refer(self, rollouts: Rollouts) -> None:
        count = min(max(int(_REFERENCE_SHARE * self._task.batch_size), 1), len(self._task))
        index_R = self._rng.choice(len(self._task), count, replace=False)
        reference = rollouts.sample(index_R, self._task.group_size)
        self._predicted_N = attend(
            self._embedding_NK, self._embedding_NK[index_R], reference.rate_M
        )

    def _old(self, count: int) -> Groups:
        count = min(count, len(self._buffer))
        return self._buffer.take(self._rng.permutation(len(self._buffer))[:count])

    def _draw(self, count: int) -> Ints:
        """Gumbel top-k of the log probabilities."""
        score_N = -np.abs(self._predicted_N - 0.5) / _TEMPERATURE
        score_N += self._rng.gumbel(size=len(score_N))
        return np.argpartition(-score_N, count - 1)[:count]


def attend(query_NK: Floats, key_RK: Floats, value_R: Floats) -> Floats:
    """``softmax(q k' / sqrt(K)) v``"""
    scale = np.sqrt(query_NK.shape[1])
    score_NR = query_NK.astype(np.float32) @ (key_RK.T / scale).astype(np.float32)
    weight_NR = np.exp(score_NR - score_NR.max(axis=1, keepdims=True))
    return weight_NR @ value_R / weight_NR.sum(axis=1)
