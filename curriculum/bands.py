"""Bands: where a prompt stands, in one word."""

from enum import IntEnum
from functools import lru_cache

import numpy as np

from curriculum.arrays import Bools, Bytes, Floats, Ints
from curriculum.belief import Belief
from curriculum.beta import beta_cdf
from curriculum.errors import require
from curriculum.grid import LogGrid, read_line

_GRID = LogGrid(0.01, 1e3, 256)


class Band(IntEnum):
    """Where a prompt stands for the current policy."""

    UNSEEN = 0
    BEYOND = 1
    EDGE = 2
    MASTERED = 3


def classify_bands(belief: Belief, attempts_N: Ints, edge_low: float, edge_high: float) -> Bytes:
    """The band of each prompt, by the posterior median.

    beyond if ``P(p < edge_low) > 1/2``, mastered if ``P(p > edge_high) > 1/2``, else edge; unseen
    if there was never an attempt. The median itself is not computed: see `_mass_below`.

    Args:
        belief: N beliefs.
        attempts_N: (N,) attempts ever made.
        edge_low: in (0, edge_high).
        edge_high: in (edge_low, 1).

    Returns:
        (N,) uint8 of `Band`.

    Raises:
        InvalidInputError: limits not ordered, or shapes that differ.
    """
    _check_limits(edge_low, edge_high)
    shapes = (belief.alpha_N.shape, attempts_N.shape)
    require(shapes[0] == shapes[1], "shapes", shapes, "equal")
    band_N = np.full(attempts_N.shape, Band.EDGE, dtype=np.uint8)
    band_N[_mass_below(belief.alpha_N, belief.beta_N, edge_low, 0.5)] = Band.BEYOND
    band_N[_mass_below(belief.beta_N, belief.alpha_N, 1.0 - edge_high, 0.5)] = Band.MASTERED
    band_N[attempts_N == 0] = Band.UNSEEN
    return band_N


def bands_settled(belief: Belief, edge_low: float, edge_high: float) -> Bools:
    """Whether a band holds at least 90% of the posterior, so that more attempts would not move it.

    For the edge: at most 5% below and at most 5% above, which is sufficient.

    Args:
        belief: N beliefs.
        edge_low: in (0, edge_high).
        edge_high: in (edge_low, 1).

    Raises:
        InvalidInputError: limits not ordered.
    """
    _check_limits(edge_low, edge_high)
    low = (belief.alpha_N, belief.beta_N, edge_low)
    high = (belief.beta_N, belief.alpha_N, 1.0 - edge_high)
    outside = _mass_below(*low, 0.05) | _mass_below(*high, 0.05)
    return _mass_below(*low, 0.9) | _mass_below(*high, 0.9) | ~outside


def _check_limits(edge_low: float, edge_high: float) -> None:
    ordered = 0.0 < edge_low < edge_high < 1.0
    require(ordered, "edge_low, edge_high", (edge_low, edge_high), "0 < low < high < 1")


def _mass_below(a: Floats, b: Floats, limit: float, mass: float) -> Bools:
    """Whether ``P(p < limit) > mass`` for ``p ~ Beta(a, b)``.

    The probability grows with b, so for each a there is one b where it equals `mass`. That curve,
    ``b / a`` as a function of ``log a``, is tabulated and interpolated: at the answer's border the
    probability is within .0002 of `mass` for a in [.01, 1000]; outside the last ratio holds.
    """
    ratio = _boundary(round(limit, 12), mass)  # 1 - .95 and .05 are to share a table
    below: Bools = b > a * read_line(ratio, _GRID.locate(a))
    return below


@lru_cache(maxsize=64)
def _boundary(limit: float, mass: float) -> Floats:
    """For a at each node, the b / a at which `mass` lies below `limit`: bisection on its log."""
    a = _GRID.nodes
    low, width = np.full(len(a), -12.0), 28.0
    for _ in range(30):
        width /= 2.0
        too_small = beta_cdf(limit, a, a * np.exp(low + width)) < mass
        low = np.where(too_small, low + width, low)
    return np.exp(low + width / 2.0)
