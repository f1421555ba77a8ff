"""The prior: what the pool as a whole says about a prompt that nobody has sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats, Ints
from curriculum.belief import Belief
from curriculum.errors import require

# Pass rates are often bimodal, so the concentration may be below 1. At .25 one attempt already
# outweighs the prior four times; above 16 the prior would outweigh two groups of eight attempts.
_CONCENTRATION_RANGE = (0.25, 16.0)
_CORRELATION_RANGE = (
    1.0 / (_CONCENTRATION_RANGE[1] + 1.0),
    1.0 / (_CONCENTRATION_RANGE[0] + 1.0),
)
# Before any evidence: Beta(1, 1), whose mean is 1/2 and whose correlation 1 / (kappa + 1) is 1/3.
_START_CORRELATION = 1.0 / 3.0
# The sd of pass rates within a domain is about .4, of domain means about .18: the shrinkage that
# minimises the squared error is then (.4 / .18)**2 = 5 prompts' worth of the wider mean.
_POOLING_PROMPTS = 5.0
_MOST_LOGIT = 4.0  # pass rates from .02 to .98
_ROUNDS = 8  # of Newton's method, with the precisions and the correlation learned beside it
_PRECISION_RANGE = (0.05, 1e4)
_CONSTANT_PRECISION = 0.25  # pools' mean pass rates lie within two logits of 1/2, mostly
# Domains scatter by about a logit, as if four more had shown it: or one prompt that passes where
# others fail would make its domain an easy one.
_LIKE_DOMAINS = 4.0
_LONGEST_STEP = 2.0  # in logits, lest a first step overshoots


@dataclass(frozen=True)
class Prior:
    """``p_i ~ Beta(kappa m_i, kappa (1 - m_i))``, ``logit m_i = b_d + w . x_i``.

    Attributes:
        intercept_D: b, in logits.
        weight_K: w, in logits per unit of a feature; no entry if the pool has no features.
        concentration_D: kappa, in attempts.
    """

    intercept_D: Floats
    weight_K: Floats
    concentration_D: Floats

    def mean_at(self, domain_M: Ints, features_MK: Floats | None) -> Floats:
        """The prior mean of prompts of the given domains and features."""
        return _logistic(self._logit(domain_M, features_MK), _MOST_LOGIT)

    def belief_at(self, domain_M: Ints, features_MK: Floats | None) -> Belief:
        """What is believed of prompts without evidence."""
        mean_M, total_M = self.mean_at(domain_M, features_MK), self.concentration_D.take(domain_M)
        return Belief(total_M * mean_M, total_M * (1.0 - mean_M))

    def _logit(self, domain_M: Ints, features_MK: Floats | None) -> Floats:
        logit_M = self.intercept_D.take(domain_M)
        if len(self.weight_K) and features_MK is not None:
            # One prompt gets the same bits alone and among others, which a product of matrices
            # does not promise.
            logit_M = logit_M + np.einsum("mk,k->m", features_MK, self.weight_K, optimize=False)
        return logit_M


def fit_prior(
    passes_S: Floats,
    fails_S: Floats,
    domain_S: Ints,
    domain_count: int,
    features_SK: Floats | None = None,
) -> Prior:
    """Bayesian logistic regression of pass rates on domains and features, overdispersed.

    With n_i attempts, ``rate_i`` has mean m_i and variance ``m_i (1 - m_i) (rho + (1 - rho)/n_i)``,
    ``rho = 1 / (kappa + 1)``. The weights and the domains' intercepts around a free constant have
    normal priors. Newton's method on the quasi-likelihood, in every round of which

    * the precisions follow from the evidence: ``(gamma + 1) / (|w|**2 + 1 / K)``, gamma the weights
      that the data determine; without evidence all weights together explain a variance of 1;
    * rho follows from moments, per domain, shrunk to the pool's as if five more prompts showed it:
      ``rho = (sum w e**2/(m(1-m)) - sum w/n) / (sum w - sum w/n)`` with ``w = n / (n + 1)``, where
      the squares of S prompts are raised by ``S / (S - gamma)``, since m was fitted to them.

    A domain without evidence has the constant as its intercept; without any evidence m is 1/2 and
    kappa 2.

    Source: MacKay (1992), Neural Comput. 4:720-736, for the precisions; Kleinman (1973), JASA
    68:46-54, eqs. 2.2 and 2.4, for rho; Wedderburn (1974), Biometrika 61:439-447.
    Differs: pooling; counts fade, so n is real, and in the noise it is at least 2.

    Args:
        passes_S: (S,) passes, at least 0.
        fails_S: (S,) fails, at least 0; prompts without any attempt have no say.
        domain_S: (S,) in [0, domain_count).
        domain_count: D >= 0.
        features_SK: (S, K) of order 1.

    Raises:
        InvalidInputError: shapes differ, or D < 0.
    """
    require(domain_count >= 0, "domain_count", domain_count, ">= 0")
    shapes = {passes_S.shape, fails_S.shape, domain_S.shape}
    require(len(shapes) == 1, "shapes", sorted(shapes), "equal")
    visited = np.flatnonzero(passes_S + fails_S > 0.0)
    features_SK = np.zeros((len(passes_S), 0)) if features_SK is None else features_SK
    data = _Data(
        passes_S[visited] / (passes_S + fails_S)[visited],
        (passes_S + fails_S)[visited],
        domain_S[visited].astype(np.intp),
        domain_count,
        features_SK[visited].astype(np.float64),
    )
    return _Regression(data).fit()


@dataclass(frozen=True)
class _Data:
    rate_S: Floats
    attempts_S: Floats
    domain_S: Ints
    domain_count: int
    features_SK: Floats

    def per_domain(self, values_S: Floats) -> Floats:
        sums_D = np.bincount(self.domain_S, values_S, self.domain_count)
        return sums_D.astype(np.float64, copy=False)


class _Regression:
    """The fit while it goes on. The domains' part of the Hessian is diagonal, so it is eliminated
    and what is solved has a row for the constant and one for each feature."""

    def __init__(self, data: _Data) -> None:
        self._data = data
        size = data.features_SK.shape[1]
        self._design_SJ = np.concatenate([np.ones((len(data.rate_S), 1)), data.features_SK], axis=1)
        self._weight_J = np.zeros(1 + size)  # the constant first
        self._offset_D = np.zeros(data.domain_count)
        self._precision_J = np.full(1 + size, max(float(size), 1.0))
        self._precision_J[0] = _CONSTANT_PRECISION
        self._domain_precision = 1.0
        self._determined = 0.0  # weights and offsets, as far as the data decide them
        self._correlation_D = np.full(data.domain_count, _START_CORRELATION)

    def fit(self) -> Prior:
        if len(self._data.rate_S):
            for _ in range(_ROUNDS):
                self._newton()
                self._learn_correlation()
        concentration_D = 1.0 / self._correlation_D - 1.0
        return Prior(self._weight_J[0] + self._offset_D, self._weight_J[1:], concentration_D)

    def _logit(self) -> Floats:
        return self._design_SJ @ self._weight_J + self._offset_D[self._data.domain_S]

    def _newton(self) -> None:
        data, mean_S = self._data, _logistic(self._logit(), 30.0)
        attempts_S, rho_S = data.attempts_S, self._correlation_D[data.domain_S]
        trust_S = attempts_S / (1.0 + np.maximum(attempts_S - 1.0, 0.0) * rho_S)
        curve_S = trust_S * mean_S * (1.0 - mean_S)
        pull_S = trust_S * (data.rate_S - mean_S)
        weighted_SJ = self._design_SJ * curve_S[:, None]
        hessian_JJ = self._design_SJ.T @ weighted_SJ + np.diag(self._precision_J)
        gradient_J = self._design_SJ.T @ pull_S - self._precision_J * self._weight_J
        diagonal_D = data.per_domain(curve_S) + self._domain_precision
        gradient_D = data.per_domain(pull_S) - self._domain_precision * self._offset_D
        cross_DJ = np.stack([data.per_domain(column) for column in weighted_SJ.T], axis=1)
        scaled_DJ = cross_DJ / diagonal_D[:, None]
        inverse_JJ = np.linalg.inv(hessian_JJ - cross_DJ.T @ scaled_DJ)
        step_J = inverse_JJ @ (gradient_J - scaled_DJ.T @ gradient_D)
        step_D = gradient_D / diagonal_D - scaled_DJ @ step_J
        longest = max(np.abs(step_J).max(), np.abs(step_D).max(initial=0.0))
        shorten = min(1.0, _LONGEST_STEP / max(longest, _LONGEST_STEP))
        self._weight_J += shorten * step_J
        self._offset_D += shorten * step_D
        self._learn_precisions(np.diag(inverse_JJ), diagonal_D)

    def _learn_precisions(self, variance_J: Floats, diagonal_D: Floats) -> None:
        weight_K = self._weight_J[1:]
        self._determined = 0.0
        if len(weight_K):
            precision = self._precision_J[1]
            determined = len(weight_K) - precision * variance_J[1:].sum()
            learned = (determined + 1.0) / (np.square(weight_K).sum() + 1.0 / len(weight_K))
            self._precision_J[1:] = np.clip(learned, *_PRECISION_RANGE)
            self._determined += determined
        determined = len(diagonal_D) - (self._domain_precision / diagonal_D).sum()
        learned = (determined + _LIKE_DOMAINS) / (np.square(self._offset_D).sum() + _LIKE_DOMAINS)
        self._domain_precision = float(np.clip(learned, *_PRECISION_RANGE))
        self._determined += determined

    def _learn_correlation(self) -> None:
        data, mean_S = self._data, _logistic(self._logit(), _MOST_LOGIT)
        attempts_S = data.attempts_S
        weight_S = attempts_S / (attempts_S + 1.0)
        spread_S = weight_S * (data.rate_S - mean_S) ** 2 / (mean_S * (1.0 - mean_S))
        spread_S /= max(1.0 - self._determined / len(spread_S), 0.5)
        noise_D = data.per_domain(weight_S / np.maximum(attempts_S, 2.0))
        excess_D = data.per_domain(spread_S) - noise_D
        room_D = data.per_domain(weight_S) - noise_D
        pool = (excess_D.sum() + _POOLING_PROMPTS * _START_CORRELATION) / (
            room_D.sum() + _POOLING_PROMPTS
        )
        correlation_D = (excess_D + _POOLING_PROMPTS * pool) / (room_D + _POOLING_PROMPTS)
        # Rates that scatter less than by chance would make it negative, and attempts with it.
        self._correlation_D = np.clip(correlation_D, *_CORRELATION_RANGE)


def _logistic(logit: Floats, most: float) -> Floats:
    mean: Floats = 1.0 / (1.0 + np.exp(-np.clip(logit, -most, most)))
    return mean
