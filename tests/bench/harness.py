"""Runs an arm in an environment, step by step, and keeps what it cost and what it trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from curriculum.arrays import Floats, Ints
from tests.bench.arms import Arm, Build, Oracle, Rollouts, Task
from tests.bench.arms.base import Groups


class Environment(Protocol):
    """A pool of prompts and a policy that changes."""

    task: Task

    def policy_step(self, step: int) -> int:
        """The policy step at which a training step's rollouts are made."""

    def draw(self, index_M: Ints, attempts_M: Ints) -> Floats:
        """Sums over the attempts of each group: see `Draw`."""

    def true_pass_rate(self) -> Floats:
        """(N,) for the oracle alone."""

    def train(self, groups: Groups, signal_M: Floats) -> None:
        """The training step; the next one begins."""


@dataclass(frozen=True)
class Step:
    """One training step.

    Attributes:
        charged: rollouts made in it, whatever for.
        trained: attempts trained on.
        useful: those of them in mixed groups, each group counted the first time only.
        groups: groups trained on.
        mixed: those of them that were mixed.
    """

    charged: int
    trained: int
    useful: int
    groups: int
    mixed: int


@dataclass(frozen=True)
class Course:
    """A finished run: its steps, and how often each prompt was trained on."""

    steps: tuple[Step, ...]
    trained_N: Ints

    @property
    def charged(self) -> int:
        """All rollouts."""
        return sum(step.charged for step in self.steps)

    def useful_share(self, first_step: int = 0) -> float:
        """Attempts in mixed groups that were trained on, per rollout charged, from a step on.

        Where every group has G attempts and all are trained on, this is the share of mixed groups.
        """
        steps = self.steps[first_step:]
        return sum(step.useful for step in steps) / max(sum(step.charged for step in steps), 1)

    def mixed_share(self, first_step: int = 0) -> float:
        """Mixed groups among those trained on, whatever it cost to find them."""
        steps = self.steps[first_step:]
        return sum(step.mixed for step in steps) / max(sum(step.groups for step in steps), 1)

    @property
    def distinct_share(self) -> float:
        """Prompts trained on at least once, of the pool."""
        return float(np.mean(self.trained_N > 0))

    @property
    def effective_share(self) -> float:
        """``(sum n)**2 / sum n**2`` of the visits n, of the pool: 1 if all are visited equally."""
        squares = float(np.square(self.trained_N, dtype=np.float64).sum())
        return float(self.trained_N.sum()) ** 2 / max(squares, 1.0) / len(self.trained_N)


def run(
    build: Build,
    environment: Environment,
    rng: np.random.Generator,
    max_steps: int,
    *,
    done: Callable[[int], bool] = lambda charged: False,
    watch: Callable[[Arm], None] = lambda arm: None,
) -> Course:
    """Train until `max_steps`, or until `done` with the rollouts charged so far."""
    task = environment.task
    arm, rollouts = build(task, rng), Rollouts(environment.draw, len(task))
    steps: list[Step] = []
    trained_N = np.zeros(len(task), dtype=np.int64)
    used: set[int] = set()
    for step in range(max_steps):
        before = rollouts.charged
        groups = arm.step(environment.policy_step(step), rollouts)
        signal_M, mixed_M = rollouts.trained(groups, task.batch_size)
        environment.train(groups, signal_M)
        np.add.at(trained_N, groups.index_M, 1)
        new_M = np.array([ticket not in used for ticket in groups.ticket_M.tolist()], dtype=bool)
        used.update(groups.ticket_M.tolist())
        trained, useful = groups.attempts_M.sum(), groups.attempts_M[mixed_M & new_M].sum()
        spent = rollouts.charged - before
        steps.append(Step(spent, int(trained), int(useful), len(groups), int(mixed_M.sum())))
        watch(arm)
        if done(rollouts.charged):
            break
    return Course(tuple(steps), trained_N)


def oracle_of(environment: Environment) -> Build:
    """The arm that is shown the truth of this environment."""
    return lambda task, rng: Oracle(task, rng, true_pass_rate=environment.true_pass_rate)
