"""The belief over a prompt's pass rate: a beta distribution."""

from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats


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
