"""Every arm against the same target: how many rollouts and steps until it is reached?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.bench.arms import Arm, Build
from tests.bench.harness import Course, oracle_of, run
from tests.bench.worlds.learner import Learner, World

GIVE_UP_AFTER = 4  # times uniform's rollouts, or steps


@dataclass(frozen=True)
class Result:
    """One arm in one world with one seed.

    The run ends when both the target and uniform's budget are behind it.

    Attributes:
        rollouts: until the target, all that were charged; until it gave up, if not reached.
        steps: the same in training steps.
        reached: whether the target was reached.
        at_budget: held-out mean reward after as many rollouts as uniform had.
        distinct: share of the pool trained on in the run.
        effective: the same as `Course.effective_share` has it.
        trained_mixed: share of mixed groups among those trained on in the run.
    """

    rollouts: int
    steps: int
    reached: bool
    at_budget: float
    distinct: float
    effective: float
    trained_mixed: float


@dataclass(frozen=True)
class Target:
    """What uniform reached, and what it spent on it."""

    held_out: float
    rollouts: int
    steps: int


def uniform_target(build: Build, world: World, seed: int) -> Target:
    """The end of a uniform run."""
    learner = Learner(world, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 2])
    course = run(build, learner, rng, world.uniform_steps)
    return Target(learner.held_out(), course.charged, len(course.steps))


def race(build: Build | None, world: World, seed: int, target: Target) -> Result:
    """One arm, or the oracle, until the target and uniform's budget are behind it."""
    learner = Learner(world, np.random.default_rng([seed, 1]))
    chosen = build or oracle_of(learner)
    trace: list[float] = []
    finish = _Finish(target, trace)

    def watch(arm: Arm) -> None:
        trace.append(learner.held_out())

    rng, most = np.random.default_rng([seed, 2]), GIVE_UP_AFTER * target.steps
    course = run(chosen, learner, rng, most, watch=watch, done=finish)
    return _result(course, np.array(trace), target)


class _Finish:
    """Whether there is nothing left to see. What an arm spends before it first trains does not
    make it give up, but it counts in its rollouts."""

    def __init__(self, target: Target, trace: list[float]) -> None:
        self._target, self._trace = target, trace
        self._spent_before: int | None = None

    def __call__(self, charged: int) -> bool:
        if self._spent_before is None:
            self._spent_before = charged
        reached = max(self._trace) >= self._target.held_out
        limit = GIVE_UP_AFTER * self._target.rollouts
        since = charged - self._spent_before
        return (reached and charged >= self._target.rollouts) or since >= limit


def _result(course: Course, held_out: np.ndarray, target: Target) -> Result:
    charged = np.cumsum([step.charged for step in course.steps])
    over = np.flatnonzero(held_out >= target.held_out)
    last = int(over[0]) if len(over) else len(held_out) - 1
    within = np.flatnonzero(charged <= target.rollouts)
    return Result(
        rollouts=int(charged[last]),
        steps=last + 1,
        reached=bool(len(over)),
        at_budget=float(held_out[within[-1]]) if len(within) else float("nan"),
        distinct=course.distinct_share,
        effective=course.effective_share,
        trained_mixed=course.mixed_share(),
    )
