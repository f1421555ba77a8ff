"""The beta distribution: exact but slow; fast tables come from it."""

import math

import numpy as np

from curriculum.arrays import Floats, Ints
from curriculum.belief import Belief
from curriculum.errors import require

_MAX_TERMS = 5_000  # the fraction needs about sqrt(max(a, b)) terms
_TINY = 1e-300
_lgamma = np.frompyfunc(math.lgamma, 1, 1)


def beta_cdf(x: Floats | float, alpha: Floats | float, beta: Floats | float) -> Floats:
    """Regularised incomplete beta function ``I_x(a, b) = P(p <= x)`` for ``p ~ Beta(a, b)``.

    By its continued fraction where ``x <= (a + 1) / (a + b + 2)``, by ``1 - I_{1-x}(b, a)``
    elsewhere. Absolute error below 1e-9 for a and b up to 1e6.

    Source: DLMF 8.17.22; evaluation by the modified Lentz method, Press et al. (2007), 6.4.

    Args:
        x: in [0, 1]; broadcasts with the others.
        alpha: a > 0.
        beta: b > 0.

    Raises:
        InvalidInputError: an argument outside its range.
    """
    return _cdf(*_checked("x", x, alpha, beta))


def beta_quantile(
    mass: Floats | float, alpha: Floats | float, beta: Floats | float, *, halvings: int = 50
) -> Floats:
    """The x with ``I_x(a, b) = mass``, by bisection on [0, 1]; absolute error ``2**-halvings``.

    Args:
        mass: in [0, 1]; broadcasts with the others.
        alpha: a > 0.
        beta: b > 0.
        halvings: steps of the bisection.

    Raises:
        InvalidInputError: an argument outside its range.
    """
    mass, a, b, log_beta = _checked("mass", mass, alpha, beta)
    low, width = np.zeros(mass.shape), 1.0
    for _ in range(halvings):
        width /= 2.0
        low = np.where(_cdf(low + width, a, b, log_beta) < mass, low + width, low)
    return low + width / 2.0


def log_beta_binomial(passes: Ints | int, attempts: int, belief: Belief) -> Floats:
    """Log probability of the passes among independent attempts, under beliefs over the pass rate.

    ``log [ C(n, k) B(a + k, b + n - k) / B(a, b) ]``

    Args:
        passes: k in [0, n], one for all beliefs or one for each.
        attempts: n >= 0.
        belief: N beliefs.
    """
    fails, a, b = attempts - passes, belief.alpha_N, belief.beta_N
    choose = _log_gamma(attempts + 1) - _log_gamma(passes + 1) - _log_gamma(fails + 1)
    after = _log_gamma(a + passes) + _log_gamma(b + fails) - _log_gamma(a + b + attempts)
    return choose + (after - (_log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)))


def _checked(
    name: str, fraction: Floats | float, alpha: Floats | float, beta: Floats | float
) -> tuple[Floats, Floats, Floats, Floats]:
    """The arguments, broadcast, and the logarithm of the beta function."""
    values = (np.asarray(value, dtype=np.float64) for value in (fraction, alpha, beta))
    x, a, b = np.broadcast_arrays(*values)
    require(np.all((x >= 0.0) & (x <= 1.0)), name, "array", "in [0, 1]")
    require(np.all((a > 0.0) & (b > 0.0)), "alpha, beta", "array", "> 0")
    return x, a, b, _log_gamma(a) + _log_gamma(b) - _log_gamma(a + b)


def _cdf(x: Floats, a: Floats, b: Floats, log_beta: Floats) -> Floats:
    swapped = x > (a + 1.0) / (a + b + 2.0)
    a, b = np.where(swapped, b, a), np.where(swapped, a, b)
    x = np.where(swapped, 1.0 - x, x)
    with np.errstate(divide="ignore"):  # log 0 at the ends is what makes them exactly 0 and 1
        tail = np.exp(a * np.log(x) + b * np.log1p(-x) - log_beta) / a * _fraction(x, a, b)
    cdf: Floats = np.where(swapped, 1.0 - tail, tail)
    return cdf


def _fraction(x: Floats, a: Floats, b: Floats) -> Floats:
    """``1 / (1 + d1 / (1 + d2 / (1 + ...)))`` of DLMF 8.17.22."""
    c, d, value = np.full_like(x, 1.0 / _TINY), np.ones_like(x), np.ones_like(x)
    for m in range(_MAX_TERMS):
        at = a + 2.0 * m
        odd = -(a + m) * (a + b + m) * x / (at * (at + 1.0))
        even = (m + 1.0) * (b - m - 1.0) * x / ((at + 1.0) * (at + 2.0))
        for term in (odd, even):
            d = 1.0 + term * d
            d = 1.0 / np.where(np.abs(d) < _TINY, _TINY, d)
            c = 1.0 + term / c
            c = np.where(np.abs(c) < _TINY, _TINY, c)
            value = value * (c * d)
        if np.all(np.abs(c * d - 1.0) < 1e-13):
            break
    return value


def _log_gamma(x: Floats | Ints | int) -> Floats:
    return np.asarray(_lgamma(x), dtype=np.float64)
