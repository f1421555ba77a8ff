"""How well the next visit is foretold when every prompt is visited in every epoch.

Before epoch v each prompt's belief is formed from its visits before v, and the visit v is compared
with it. Axes: V epochs, N prompts that had that many visits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curriculum import Belief
from curriculum.arrays import Floats, Ints
from curriculum.beta import log_beta_binomial
from tests.bench.arms.base import Groups, Task
from tests.bench.arms.edge import Ledger, pool_of
from tests.bench.replay.environment import RECORDED_ATTEMPTS, Trace

_BINS = 10


@dataclass(frozen=True)
class Foretold:
    """Beliefs and what came of them, for all prompts and all epochs but the first.

    Attributes:
        mean_M: believed pass rates.
        log_probability_M: of the number of passes that came.
        rate_M: pass rates that came.
    """

    mean_M: Floats
    log_probability_M: Floats
    rate_M: Floats

    @property
    def squared_error(self) -> float:
        """Mean of ``(mean - rate)**2``; the noise of eight attempts is part of it."""
        return float(np.mean((self.mean_M - self.rate_M) ** 2))

    @property
    def log_score(self) -> float:
        """Mean log probability of what came; larger is better."""
        return float(self.log_probability_M.mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the pass rates."""
        return calibration_error(self.mean_M, self.rate_M)


def foretell(trace: Trace, steps_per_visit: float) -> Foretold:
    """The product's beliefs, one visit ahead."""
    visit_count_N = trace.visit_count_N
    size, epochs = len(visit_count_N), int(visit_count_N.max())
    correct_NV = np.array([np.pad(row, (0, epochs - len(row))) for row in trace.correct])
    task = Task(np.zeros(size, np.int32), 1, None, size, RECORDED_ATTEMPTS)
    ledger, never_N = Ledger(size), np.full(size, -1)
    beliefs, came = [], []
    for epoch in range(epochs):
        step = round(epoch * steps_per_visit)
        here_N = np.flatnonzero(visit_count_N > epoch)
        ledger.turn(step)
        if epoch:
            pool = pool_of(task, ledger, step, never_N)
            beliefs.append(pool.beliefs(pool.fit(), here_N))
            came.append(correct_NV[here_N, epoch])
        ledger.add(step, _groups(here_N, correct_NV[here_N, epoch]))
    belief = Belief.join(beliefs)
    passes_M = np.concatenate(came)
    log_probability_M = log_beta_binomial(passes_M, RECORDED_ATTEMPTS, belief)
    return Foretold(belief.mean, log_probability_M, passes_M / RECORDED_ATTEMPTS)


def calibration_error(believed_M: Floats, came_M: Floats) -> float:
    """``sum_k (M_k / M) abs(mean believed - mean of what came)`` over ten equal bins of belief.

    Source: Naeini, Cooper and Hauskrecht (2015), AAAI.
    """
    bin_M = np.minimum((believed_M * _BINS).astype(np.intp), _BINS - 1)
    gap_K = np.bincount(bin_M, believed_M - came_M, _BINS)
    return float(np.abs(gap_K).sum() / len(believed_M))


def _groups(index_M: Ints, passes_M: Ints) -> Groups:
    rate_M = passes_M / RECORDED_ATTEMPTS
    attempts_M = np.full(len(index_M), RECORDED_ATTEMPTS)
    spread_M = np.sqrt(rate_M * (1.0 - rate_M))
    return Groups(index_M, index_M, attempts_M, passes_M.astype(np.float64), spread_M)
