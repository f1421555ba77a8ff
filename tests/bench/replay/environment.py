"""A recorded training run as the environment.

The recording has one group of G attempts for each visit of a prompt, and a prompt was visited once
an epoch, V_i times in all. A replay of T steps serves prompt i at step t its group of visit
``floor(t V_i / T)``: the record of that part of the run, whoever was trained on since.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from curriculum.arrays import Bools, Floats, Ints
from tests.bench.arms.base import Groups, Task

RECORDED_ATTEMPTS = 8
# Policy steps between two visits: the recorded run had 1,209 prompts, 128 a step.
STEPS_PER_VISIT = 9.45
# Widths of the hindsight estimate's kernel to choose from, in visits.
_WIDTHS_VISITS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


@dataclass(frozen=True, eq=False)
class Trace:
    """Correct attempts of 8 at each visit, one array per prompt, of unequal lengths."""

    correct: tuple[Ints, ...]

    @property
    def visit_count_N(self) -> Ints:
        """V_i."""
        return np.array([len(row) for row in self.correct])

    @property
    def epochs(self) -> int:
        """Visits of the median prompt."""
        return int(np.median(self.visit_count_N))


def read_trace(path: Path) -> Trace:
    """A JSON object: prompt -> correct share at each visit."""
    rows = json.loads(path.read_text(encoding="utf-8")).values()
    return Trace(
        tuple(np.rint(np.asarray(row) * RECORDED_ATTEMPTS).astype(np.int64) for row in rows)
    )


def smoothed(correct_V: Ints, width_visits: float, *, without_itself: bool = False) -> Floats:
    """A prompt's pass rate at each visit, in hindsight: a Gaussian kernel over all its visits."""
    visit = np.arange(len(correct_V))
    kernel = np.exp(-0.5 * ((visit[:, None] - visit) / width_visits) ** 2)
    if without_itself:
        np.fill_diagonal(kernel, 0.0)
    rate = kernel @ correct_V / kernel.sum(axis=1) / RECORDED_ATTEMPTS
    return np.clip(rate, 0.0, 1.0)


@lru_cache(maxsize=8)
def best_width(trace: Trace) -> float:
    """The width that best predicts each visit from the others, by squared error."""

    def error(width: float) -> float:
        missed = [
            smoothed(row, width, without_itself=True) - row / RECORDED_ATTEMPTS
            for row in trace.correct
        ]
        return float(np.mean(np.concatenate(missed) ** 2))

    return min(_WIDTHS_VISITS, key=error)


class Replay:
    """An `Environment` that plays the recording, with the recorded run's policy steps as its clock.

    The first eight attempts at a visit are the recorded ones, in random order; whoever asks for
    more at the same visit gets attempts at the pass rate of the hindsight estimate. Training
    changes nothing: a replay shows prediction and waste, not learning.
    """

    def __init__(
        self,
        trace: Trace,
        rng: np.random.Generator,
        *,
        step_count: int,
        batch_size: int,
        steps_per_visit: float = STEPS_PER_VISIT,
    ) -> None:
        size = len(trace.correct)
        self.task = Task(np.zeros(size, np.int32), 1, None, batch_size, RECORDED_ATTEMPTS)
        self.step_count = step_count
        self._rng, self._step = rng, 0
        visit_NT = trace.visit_count_N[:, None] * np.arange(step_count) // step_count
        pairs = list(zip(trace.correct, visit_NT, strict=True))
        self._correct_NT = np.array([row[visit] for row, visit in pairs])
        width = best_width(trace)
        self._rate_NT = np.array([smoothed(row, width)[visit] for row, visit in pairs])
        self._visit_NT = visit_NT
        self._steps_per_step = steps_per_visit * trace.epochs / step_count
        self._left_N = np.zeros(size, np.int64)
        self._left_correct_N = np.zeros(size, np.int64)
        self._turn(np.ones(size, bool))

    def policy_step(self, step: int) -> int:
        return round(step * self._steps_per_step)

    def true_pass_rate(self) -> Floats:
        return self._rate_NT[:, self._step]

    def draw(self, index_M: Ints, attempts_M: Ints) -> Floats:
        passes_M = np.zeros(len(index_M))
        waiting = np.arange(len(index_M))
        while len(waiting):  # a prompt that occurs twice uses up its record in order
            first = np.unique(index_M[waiting], return_index=True)[1]
            now = waiting[first]
            passes_M[now] = self._draw_distinct(index_M[now], attempts_M[now])
            waiting = np.delete(waiting, first)
        return np.repeat(passes_M[:, None], 4, axis=1)  # rewards are 0 or 1, and true

    def train(self, groups: Groups, signal_M: Floats) -> None:
        self._step += 1
        if self._step < self.step_count:
            at = self._step
            self._turn(self._visit_NT[:, at] != self._visit_NT[:, at - 1])

    def _draw_distinct(self, index_M: Ints, attempts_M: Ints) -> Ints:
        left_M, correct_M = self._left_N[index_M], self._left_correct_N[index_M]
        recorded_M = np.minimum(attempts_M, left_M)
        passes_M = self._rng.hypergeometric(correct_M, left_M - correct_M, recorded_M)
        self._left_N[index_M] -= recorded_M
        self._left_correct_N[index_M] -= passes_M
        rate_M = self._rate_NT[index_M, self._step]
        return passes_M + self._rng.binomial(attempts_M - recorded_M, rate_M)

    def _turn(self, new_N: Bools) -> None:
        """Prompts whose next visit has come."""
        self._left_N[new_N] = RECORDED_ATTEMPTS
        self._left_correct_N[new_N] = self._correct_NT[new_N, self._step]
