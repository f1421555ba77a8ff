"""One seed's warm start and prompts, and one arm's run from there."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from curriculum.arrays import Floats
from curriculum.pass_at_k import pass_at_k
from tests.bench.arms import PEERS, PRODUCT, Arm, Build
from tests.bench.harness import Course, run
from tests.bench.learn.classroom import Classroom, Spent
from tests.bench.learn.domains import FAMILIES, Question, distinct, level_count, slipped
from tests.bench.learn.policy import Lesson, Policy, Weights
from tests.bench.learn.size import Size

# SPEED adds attempts to groups and DOTS trains on old ones, where a step here has its own alone;
# AdaRFT's references cost more than any budget.
_UNFIT = ("speed", "dots", "adarft")
ARMS: dict[str, Build] = {
    name: build for name, build in {**PRODUCT, **PEERS}.items() if name not in _UNFIT
}
K = 16
WARM_SHARES = (1.0, 1.0, 0.9, 0.6, 0.4, 0.25, 0.2)
"""How often the warm start shows a level, and of how many examples, as shares of the first."""

WARM_SLIPS = (0.0, 0.0, 0.02, 0.25, 0.45, 0.6, 0.6)
"""How often a character of an answer is wrong in the warm start's examples, by level.

So the model has seen hard questions, but carelessly answered, as a language model has. Without
slips and without hard questions all that is left to learn is new knowledge, of which a mixed group
holds one answer: uniform gained .005 of held-out pass@1 in 60,000 rollouts. With slips it can also
learn to prefer what it knows already, which serves every question: .06 in 46,000.
"""

_POOL_SEED, _WARM_SEED, _EXAM_SEED = 100_000_000, 200_000_000, 300_000_000
# Far apart: Reasoning Gym's instance i of a seed is instance i - 1 of the next.


@dataclass(frozen=True)
class Start:
    """What all arms of a seed have in common.

    Attributes:
        seed: of all of it.
        weights: after the warm start.
        pool: prompts to train on.
        held_out: prompts that nothing is trained on.
        pass_rate_N: of a part of the pool at the start, from 4 G attempts each.
        seconds: what the warm start took.
    """

    seed: int
    weights: Weights
    pool: tuple[Question, ...]
    held_out: tuple[Question, ...]
    pass_rate_N: Floats
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """An examination.

    Attributes:
        spent: when it was made.
        pass_at_1, pass_at_k: held out, k = 16.
        pool_mixed: the share of the pool whose groups of G are mixed.
        pool_mastered: the share whose groups of G all pass.
    """

    spent: Spent
    pass_at_1: float
    pass_at_k: float
    pool_mixed: float
    pool_mastered: float


@dataclass(frozen=True)
class Outcome:
    """A finished run of one arm.

    Attributes:
        curve: from the warm start to the end of the budget.
        course: the steps that were trained on.
        distinct_S: the share of the pool trained on by the end of each step.
        seconds: what it took.
    """

    curve: tuple[Measurement, ...]
    course: Course
    distinct_S: Floats
    seconds: float


def prepare(seed: int, size: Size, device: str) -> Start:
    """Draw the prompts and train the policy to where reinforcement learning begins."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    held_out = _spread(size.held_out_count, _EXAM_SEED + 1_000_000 * seed)
    kept_back = {question.text for question in held_out}
    pool = _spread(size.pool_count, _POOL_SEED + 1_000_000 * seed, kept_back)
    policy = Policy(size.shape, size.training, torch.device(device), seed)
    policy.warm_start(_lessons(size.warm_count, seed, kept_back), seed)
    sampled = pool[:: max(len(pool) // 1000, 1)]
    attempts = policy.attempt(sampled, np.full(len(sampled), 4 * size.group_size))
    rate_N = np.array([group.reward_G.mean() for group in attempts])
    seconds = time.perf_counter() - began
    return Start(seed, policy.weights, tuple(pool), tuple(held_out), rate_N, seconds)


def _spread(count: int, seed: int, kept_back: Container[str] = ()) -> list[Question]:
    """So many questions, as many of each family and of each of its levels.

    Of a small level at most about half, so that there are others to hold out.
    """
    found: list[Question] = []
    for family in FAMILIES:
        levels = level_count(family)
        each = round(count / len(FAMILIES) / levels)
        for level in range(levels):
            drawn = distinct(family, level, 2 * each, seed)
            free = [question for question in drawn if question.text not in kept_back]
            found += free[: min(each, len(drawn) // 2 + 1)]
    return found


def _lessons(count: int, seed: int, kept_back: set[str]) -> list[Lesson]:
    """What the warm start shows of each level that it shows anything of."""
    lessons: list[Lesson] = []
    rng = random.Random(seed)
    for family in FAMILIES:
        for level, share in zip(range(level_count(family)), WARM_SHARES, strict=False):
            drawn = distinct(family, level, round(count * share), _WARM_SEED + 1_000_000 * seed)
            examples = [
                slipped(question, WARM_SLIPS[level], rng)
                for question in drawn
                if question.text not in kept_back
            ]
            if examples:
                lessons.append((share, examples))
    return lessons


class Exam:
    """Measures a policy without charge and with the same randomness whenever it is asked."""

    def __init__(self, policy: Policy, start: Start, group_size: int) -> None:
        self._policy, self._group_size = policy, group_size
        self._held_out = list(start.held_out)
        self._part = list(start.pool[:: max(len(start.pool) // 250, 1)])

    def take(self, spent: Spent, attempts: int = K) -> Measurement:
        """pass@1 and pass@16, and how much of the pool is mixed."""
        passes = self._passes(self._held_out, attempts)
        full = np.full(len(passes), attempts)
        group = self._passes(self._part, self._group_size)
        return Measurement(
            spent,
            float(pass_at_k(full, passes, 1).mean()),
            float(pass_at_k(full, passes, K).mean()),
            float(np.mean((group > 0) & (group < self._group_size))),
            float(np.mean(group == self._group_size)),
        )

    def _passes(self, questions: Sequence[Question], attempts: int) -> np.ndarray:
        generator = torch.Generator(self._policy.device).manual_seed(1)
        groups = self._policy.attempt(questions, np.full(len(questions), attempts), generator)
        return np.array([int(group.reward_G.sum()) for group in groups])


class _Watch:
    """Examines whenever another part of the budget is spent, and tells of it."""

    def __init__(self, exam: Exam, classroom: Classroom, size: Size, name: str) -> None:
        self._exam, self._classroom, self._name = exam, classroom, name
        self._part = size.rollout_budget / size.measurements
        self._next = 1
        self.curve = [exam.take(Spent(), 2 * K)]
        self.distinct: list[float] = []

    def __call__(self, arm: Arm) -> None:
        if self._classroom.is_over:
            return
        spent = self._classroom.spent
        self.distinct.append(float(np.mean(self._classroom.trained_N > 0)))
        if spent.rollouts >= self._next * self._part:
            self._next = int(spent.rollouts // self._part) + 1
            self._add(self._exam.take(spent))

    def finish(self) -> tuple[Measurement, ...]:
        """All of the measurements; the last is more exact, and stands where the budget ends."""
        if self.curve[-1].spent.steps == self._classroom.spent.steps:
            self.curve.pop()
        self._add(self._exam.take(self._classroom.spent, 2 * K))
        return tuple(self.curve)

    def _add(self, measured: Measurement) -> None:
        self.curve.append(measured)
        print(
            f"{self._name}: {measured.spent.rollouts} rollouts, {measured.spent.steps} steps, "
            f"pass@1 {measured.pass_at_1:.3f}, pass@{K} {measured.pass_at_k:.3f}, "
            f"pool mixed {measured.pool_mixed:.2f}",
            file=sys.stderr,
            flush=True,
        )


def learn(arm_and_start: tuple[str, Start], size: Size, device: str) -> Outcome:
    """One arm from a seed's start until its budget is spent."""
    name, start = arm_and_start
    began = time.perf_counter()
    torch.set_num_threads(1)
    policy = Policy(size.shape, size.training, torch.device(device), start.seed)
    policy.load(start.weights)
    classroom = Classroom(policy, start.pool, size)
    watch = _Watch(Exam(policy, start, size.group_size), classroom, size, f"{name} {start.seed}")
    course = run(
        ARMS[name],
        classroom,
        np.random.default_rng([start.seed, 3]),
        size.rollout_budget,  # a step has a rollout at least
        done=lambda charged: charged >= size.rollout_budget,
        watch=watch,
    )
    curve = watch.finish()
    within = Course(course.steps[: classroom.spent.steps], classroom.trained_N)
    return Outcome(curve, within, np.array(watch.distinct), time.perf_counter() - began)
