"""How far rewards of the same prompt differ: what a group of graded rewards teaches from.

A group whose rewards are all equal has no advantage, whatever they are; one whose rewards are never
quite equal is always "mixed", which says nothing. What counts is their spread. With S the sum and Q
the sum of squares of n rewards in [0, 1], ``within = Q - S**2 / n`` is compared with that of passes
with the same mean, ``S (1 - S / n)``, which is the most there can be.
"""

import numpy as np

from curriculum.arrays import Floats

# A prompt's own spread counts from about four attempts at a mean of 1/2.
_PRIOR_SPREAD = 1.0
# Below an eighth an attempt would count as more than eight passes or fails.
_LEAST_GRAIN = 0.125


def fit_grain(sums_S: Floats, squares_S: Floats, attempts_S: Floats) -> float:
    """Spread of all prompts together, to that of passes: in [1/8, 1], 1 for rewards of 0 or 1."""
    within_S, most_S = _spreads(sums_S, squares_S, attempts_S)
    grain = (within_S.sum() + _PRIOR_SPREAD) / (most_S.sum() + _PRIOR_SPREAD)
    return float(np.clip(grain, _LEAST_GRAIN, 1.0))


def relative_spread(sums_M: Floats, squares_M: Floats, attempts_M: Floats, grain: float) -> Floats:
    """Standard deviation of a prompt's rewards to that of the pool's at the same mean.

    ``sqrt((within + grain) / (S (1 - S / n) + 1) / grain)``, so a prompt without attempts has 1.
    """
    within_M, most_M = _spreads(sums_M, squares_M, attempts_M)
    own_M = (within_M + _PRIOR_SPREAD * grain) / (most_M + _PRIOR_SPREAD)
    spread_M: Floats = np.sqrt(own_M / grain)
    return spread_M


def _spreads(sums: Floats, squares: Floats, attempts: Floats) -> tuple[Floats, Floats]:
    mean = sums / np.maximum(attempts, 1.0)
    return np.maximum(squares - sums * mean, 0.0), np.maximum(sums - sums * mean, 0.0)
