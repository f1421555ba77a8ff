"""edge: this project, by the code that the server runs."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from curriculum import Pool, SelectionConfig, compose_batch, discount_weights, discounted_counts
from curriculum.arrays import Floats, Ints
from tests.bench.arms.base import Groups, Rollouts, Task

WINDOW_STEPS = 5  # the server's default
# As a trainer that wants nothing but mixed groups would set it. At 1024 a score 1% below the best
# weighs e**-10: the draw is the top of the list.
GREEDY = SelectionConfig(sharpness=1024.0, rest_steps=0, review_share=0.0, reach_share=0.0)
_POOL_FIELDS = {field.name for field in fields(Pool)}


class Ledger:
    """Passes and fails by window of policy steps; closed windows are added up and fade together."""

    def __init__(
        self, prompt_count: int, discount: float, window_steps: int = WINDOW_STEPS
    ) -> None:
        self._discount, self._window_steps, self._window = discount, window_steps, 0
        self._closed = np.zeros((2, prompt_count))  # passes, fails as of the window's first step
        self._open = np.zeros((2, prompt_count))
        self.attempts_N = np.zeros(prompt_count, dtype=np.int64)

    def add(self, policy_step: int, groups: Groups) -> None:
        """Count the groups."""
        self._turn(policy_step)
        np.add.at(self._open[0], groups.index_M, groups.reward_M)
        np.add.at(self._open[1], groups.index_M, groups.attempts_M - groups.reward_M)
        np.add.at(self.attempts_N, groups.index_M, groups.attempts_M)

    def counts(self, policy_step: int) -> tuple[Floats, Floats]:
        """Discounted passes and fails at a step."""
        self._turn(policy_step)
        first = self._window * self._window_steps
        age_W = np.array([first, (first + policy_step) / 2])
        weights_W = discount_weights(age_W, policy_step, self._discount)
        attempts_WN = [self._closed.sum(axis=0), self._open.sum(axis=0)]
        passes_WN = [np.minimum(self._closed[0], attempts_WN[0]), self._open[0]]
        return discounted_counts(attempts_WN, passes_WN, weights_W)

    def _turn(self, policy_step: int) -> None:
        """Close the window if the step is in a later one."""
        window = policy_step // self._window_steps
        if window == self._window:
            return
        first = self._window * self._window_steps
        ages = window * self._window_steps - np.array([first, first + (self._window_steps - 1) / 2])
        faded, closing = self._discount**ages
        self._closed = faded * self._closed + closing * self._open
        self._open = np.zeros_like(self._open)
        self._window = window


class Edge:
    """The product: beliefs from discounted windows, the fitted prior, `compose_batch`.

    Args:
        config: of the selection; the group size is the task's.
    """

    def __init__(
        self, task: Task, rng: np.random.Generator, *, config: SelectionConfig | None = None
    ) -> None:
        self._task, self._rng = task, rng
        self._config = replace(config or SelectionConfig(), group_size=task.group_size)
        self._ledger = Ledger(len(task), self._config.discount)
        self._last_served_N = np.full(len(task), -1)
        self.believed_B: Floats = np.empty(0)
        self.served = Groups.none()

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        pool = pool_of(self._task, self._ledger, policy_step, self._last_served_N)
        size = self._task.batch_size
        batch = compose_batch(pool.fit_prior(), pool, self._config, size, self._rng)
        groups = rollouts.sample(batch.indices_B, batch.attempt_counts_B)
        self._ledger.add(policy_step, groups)
        self._last_served_N[batch.indices_B] = policy_step
        self.believed_B, self.served = batch.pass_rate_B, groups
        return groups


def pool_of(task: Task, ledger: Ledger, policy_step: int, last_served_N: Ints) -> Pool:
    """What selection sees."""
    known = {"features_NK": task.features_NK} if "features_NK" in _POOL_FIELDS else {}
    successes_N, failures_N = ledger.counts(policy_step)
    return Pool(
        successes_N=successes_N,
        failures_N=failures_N,
        attempts_N=ledger.attempts_N,
        domain_N=task.domain_N,
        domains=tuple(f"domain {d}" for d in range(task.domain_count)),
        last_served_step_N=last_served_N,
        free_N=np.ones(len(task), dtype=bool),
        policy_step=policy_step,
        **known,
    )
