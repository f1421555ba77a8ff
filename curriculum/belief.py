"""The belief over a prompt's pass rate: a beta distribution."""

from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats
from curriculum.errors import require


@dataclass(frozen=True)
class Belief:
    """``p_i ~ Beta(alpha_i, beta_i)``, one per prompt."""

    alpha_N: Floats
    beta_N: Floats

    @property
    def mean(self) -> Floats:
        """``alpha / (alpha + beta)``"""
        return self.alpha_N / (self.alpha_N + self.beta_N)

    @property
    def sd(self) -> Floats:
        """``sqrt(mean (1 - mean) / (alpha + beta + 1))``"""
        total = self.alpha_N + self.beta_N
        mean = self.alpha_N / total
        sd: Floats = np.sqrt(mean * (1.0 - mean) / (total + 1.0))
        return sd


def posterior(
    successes_N: Floats,
    failures_N: Floats,
    prior_mean_N: Floats,
    prior_concentration_N: Floats,
) -> Belief:
    """The belief after discounted evidence: the conjugate update of a beta prior.

    ``alpha_i = kappa_i m_i + S_i``,  ``beta_i = kappa_i (1 - m_i) + F_i``

    Without evidence it is the prior. The prior may come from domains (`Prior.at`) or from any other
    model of a prompt's difficulty.

    Source: DeGroot (1970), Optimal Statistical Decisions, theorem 9.2.1.
    Differs: the counts are discounted, so they are real numbers.

    Args:
        successes_N: (N,) discounted passes, at least 0.
        failures_N: (N,) discounted fails, at least 0.
        prior_mean_N: (N,) m, in (0, 1).
        prior_concentration_N: (N,) kappa > 0, in units of attempts.

    Raises:
        InvalidInputError: shapes differ, or a value outside its range.
    """
    arrays = (successes_N, failures_N, prior_mean_N, prior_concentration_N)
    shapes = {array.shape for array in arrays}
    require(len(shapes) == 1, "shapes", sorted(shapes), "equal")
    for name, array in (("successes_N", successes_N), ("failures_N", failures_N)):
        least = array.min(initial=0.0)  # NaN if there is one
        require(least >= 0.0, name, least, ">= 0")
    least, most = prior_mean_N.min(initial=0.5), prior_mean_N.max(initial=0.5)
    require(least > 0.0 and most < 1.0, "prior_mean_N", (least, most), "in (0, 1)")
    least = prior_concentration_N.min(initial=1.0)
    require(least > 0.0, "prior_concentration_N", least, "> 0")
    alpha_N = prior_concentration_N * prior_mean_N
    return Belief(alpha_N + successes_N, prior_concentration_N - alpha_N + failures_N)
