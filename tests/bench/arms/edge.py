"""edge: this project, by the code that the server runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from curriculum import Block, Model, Pool, SelectionConfig, compose_batch
from curriculum.arrays import Floats, Ints
from curriculum_server.engine.config import RunConfig
from curriculum_server.store.document import Document
from curriculum_server.store.windows import blocks, mid_steps
from tests.bench.arms.base import Groups, Rollouts, Task

# As a trainer that wants nothing but mixed groups would set it. At 1024 a worth 1% below the best
# weighs e**-10: the draw is the top of the list.
GREEDY = SelectionConfig(
    sharpness=1024.0, rest_steps=0, wear_visits=0.0, review_share=0.0, reach_share=0.0
)


class Ledger:
    """What came by window of policy steps, seen as blocks, as the server sees it."""

    def __init__(self, prompt_count: int, window_steps: int = RunConfig.window_steps) -> None:
        self._window_steps = window_steps
        self._document = Document(config={})
        self._windows = self._document.windows
        self._sums_4N: dict[int, Floats] = {0: np.zeros((4, prompt_count))}
        """By window: attempts, their rewards, the squares of these, attempts of probes."""
        self.attempts_N = np.zeros(prompt_count, dtype=np.int64)

    def add(self, policy_step: int, groups: Groups, *, probed: bool = False) -> None:
        """Count the groups."""
        self.turn(policy_step)
        attempts_M, sums_4N = groups.attempts_M, self._sums_4N[self._windows[-1].window]
        squares_M = attempts_M * (groups.spread_M**2 + groups.rate_M**2)
        columns = (attempts_M, groups.reward_M, squares_M, attempts_M * probed)
        for row, new_M in enumerate(columns):
            np.add.at(sums_4N[row], groups.index_M, new_M)
        np.add.at(self.attempts_N, groups.index_M, attempts_M)

    def turn(self, policy_step: int) -> bool:
        """Open a window if the step is behind the last one; whether it was."""
        if policy_step <= self._windows[-1].last_step:
            return False
        self._document = self._document.with_window_for(policy_step, self._window_steps)
        self._windows = blocks(self._document.windows)
        before, self._sums_4N = self._sums_4N, {}
        for window in self._windows:
            parts = [before.pop(old) for old in sorted(before) if old <= window.window]
            self._sums_4N[window.window] = sum(parts, np.zeros((4, len(self.attempts_N))))
        return True

    def blocks(self, policy_step: int) -> tuple[Block, ...]:
        """As of a step."""
        middles = zip(self._windows, mid_steps(self._windows, policy_step), strict=True)
        return tuple(Block(middle, *self._sums_4N[window.window]) for window, middle in middles)


class Edge:
    """The product: beliefs from blocks, the model refitted with each window, `compose_batch`.

    Args:
        config: of the selection; the group size is the task's.
    """

    def __init__(
        self, task: Task, rng: np.random.Generator, *, config: SelectionConfig | None = None
    ) -> None:
        self._task, self.rng = task, rng
        self.config = replace(config or SelectionConfig(), group_size=task.group_size)
        self.ledger = Ledger(len(task))
        self._last_served_N = np.full(len(task), -1)
        self.model: Model | None = None
        self.believed_B: Floats = np.empty(0)
        self.served = Groups.none()

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        turned = self.ledger.turn(policy_step)
        pool = self.pool(policy_step)
        if self.model is None or turned or len(pool.blocks) <= 1:
            self.model = pool.fit()
        size = self._task.batch_size
        batch = compose_batch(self.model, pool, self.config, size, self.rng)
        groups = rollouts.sample(batch.indices_B, batch.attempt_counts_B)
        self.ledger.add(policy_step, groups)
        self._last_served_N[batch.indices_B] = policy_step
        self.believed_B, self.served = batch.pass_rate_B, groups
        return groups

    def pool(self, policy_step: int) -> Pool:
        """What selection sees."""
        return pool_of(self._task, self.ledger, policy_step, self._last_served_N)


def pool_of(task: Task, ledger: Ledger, policy_step: int, last_served_N: Ints) -> Pool:
    """What selection sees."""
    return Pool(
        blocks=ledger.blocks(policy_step),
        attempts_N=ledger.attempts_N,
        domain_N=task.domain_N,
        domains=tuple(f"domain {d}" for d in range(task.domain_count)),
        last_served_step_N=last_served_N,
        free_N=np.ones(len(task), dtype=bool),
        policy_step=policy_step,
        features_NK=task.features_NK,
    )
