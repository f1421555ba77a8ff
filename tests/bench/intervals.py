"""Bootstrap intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its central 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def bootstrap(values_S: Sequence[float] | Floats) -> Estimate:
    """The mean of one value per seed; seeds are resampled with replacement."""
    values = np.asarray(values_S, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def geometric(log_SW: Floats) -> Estimate:
    """The geometric mean over seeds and worlds, from logarithms; seeds are resampled."""
    of_logs = bootstrap(log_SW.mean(axis=1))
    return Estimate(*(float(np.exp(value)) for value in vars(of_logs).values()))
