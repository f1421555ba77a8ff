"""The prior of a domain, fitted to the pool as it is now."""

from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats, Ints
from curriculum.errors import require

# The sd of pass rates within a domain is about .4, of domain means about .18: the shrinkage that
# minimises the squared error is then (.4 / .18)**2 = 5 prompts' worth of the wider mean.
_POOLING_PROMPTS = 5.0
# Before any evidence: Beta(1, 1), whose mean is 1/2 and whose correlation 1 / (kappa + 1) is 1/3.
_START_MEAN, _START_CORRELATION = 0.5, 1.0 / 3.0
# Pass rates are often bimodal, so the concentration may be below 1. At .5 one attempt already
# outweighs the prior twice; above 16 the prior would outweigh two groups of eight attempts.
_CONCENTRATION_RANGE = (0.5, 16.0)
_MEAN_RANGE = (0.02, 0.98)
# Enough for a standard error of .004 on a mean; more would cost time and change nothing. Spread by
# the golden ratio, which unlike a stride never falls into step with interleaved domains.
_SAMPLE_PROMPTS = 1 << 14
_SPREAD = np.sort(np.arange(_SAMPLE_PROMPTS) * 0.6180339887498949 % 1.0)


@dataclass(frozen=True)
class Prior:
    """``p_i ~ Beta(kappa_d m_d, kappa_d (1 - m_d))`` for a prompt i of domain d."""

    mean_D: Floats
    concentration_D: Floats

    def at(self, domain_N: Ints) -> tuple[Floats, Floats]:
        """The prior mean and concentration of prompts of the given domains."""
        wide_N = domain_N.astype(np.intp, copy=False)  # take is twice as fast on the native type
        return self.mean_D.take(wide_N), self.concentration_D.take(wide_N)


def fit_domain_prior(
    successes_N: Floats, failures_N: Floats, domain_N: Ints, domain_count: int
) -> Prior:
    """Mean and concentration of each domain's pass rates, by pooled moments.

    Under ``p_i ~ Beta(kappa m, kappa (1 - m))`` and n_i attempts the observed rate has the variance
    ``m (1 - m) (rho + (1 - rho) / n_i)`` with ``rho = 1 / (kappa + 1)``. With weights
    ``w_i = n_i / (n_i + 1)``, the precision for kappa = 1,

        m   = sum w_i rate_i / sum w_i
        rho = (sum w_i (rate_i - m)**2 / (m (1 - m)) - sum w_i / n_i) / (sum w_i - sum w_i / n_i)

    Both are shrunk as if 5 more prompts showed the value of the whole pool, and that as if 5 more
    showed Beta(1, 1). So a domain with few visited prompts follows the pool, and a pool without
    evidence has m = 1/2, kappa = 2. Of more than 16,384 visited prompts an even sample is used.

    Source: Kleinman (1973), JASA 68:46-54, eqs. 2.2 and 2.4.
    Differs: pooling; no small-sample correction (pooling covers it); counts are discounted, and a
    group has at least two attempts, so n_i in the noise ``w_i / n_i`` is at least 2.

    Args:
        successes_N: (N,) discounted passes, at least 0.
        failures_N: (N,) discounted fails, at least 0.
        domain_N: (N,) the domain of each prompt, in [0, domain_count).
        domain_count: D >= 0.

    Raises:
        InvalidInputError: shapes differ, or D < 0.
    """
    require(domain_count >= 0, "domain_count", domain_count, ">= 0")
    shapes = {successes_N.shape, failures_N.shape, domain_N.shape}
    require(len(shapes) == 1, "shapes", sorted(shapes), "equal")
    visited = _even_sample(np.flatnonzero(successes_N + failures_N > 0.0))
    passes, domain = successes_N[visited], domain_N[visited].astype(np.intp)
    attempts = passes + failures_N[visited]
    weight = attempts / (attempts + 1.0)
    rate = passes / attempts

    def per_domain(values: Floats) -> Floats:
        sums: Floats = np.bincount(domain, values, domain_count).astype(np.float64, copy=False)
        return sums

    weight_D, noise_D = per_domain(weight), per_domain(weight / np.maximum(attempts, 2.0))
    first_D, second_D = per_domain(weight * rate), per_domain(weight * rate * rate)
    mean_D = np.clip(_pooled(first_D, weight_D, _START_MEAN), *_MEAN_RANGE)
    squares_D = second_D - 2.0 * mean_D * first_D + mean_D * mean_D * weight_D
    excess_D = squares_D / (mean_D * (1.0 - mean_D)) - noise_D
    correlation_D = _pooled(excess_D, weight_D - noise_D, _START_CORRELATION)
    least, most = (1.0 / (kappa + 1.0) for kappa in reversed(_CONCENTRATION_RANGE))
    return Prior(mean_D, 1.0 / np.clip(correlation_D, least, most) - 1.0)


def _pooled(sum_D: Floats, weight_D: Floats, start: float) -> Floats:
    """Weighted means per domain, shrunk to the pool's, itself shrunk to `start`."""
    pool = (sum_D.sum() + _POOLING_PROMPTS * start) / (weight_D.sum() + _POOLING_PROMPTS)
    pooled: Floats = (sum_D + _POOLING_PROMPTS * pool) / (weight_D + _POOLING_PROMPTS)
    return pooled


def _even_sample(indices_M: Ints) -> Ints:
    """At most 16,384 of the indices; always the same ones."""
    if len(indices_M) <= _SAMPLE_PROMPTS:
        return indices_M
    return indices_M[(_SPREAD * len(indices_M)).astype(np.intp)]
