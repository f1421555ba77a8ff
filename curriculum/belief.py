"""The belief over a prompt's pass rate: a beta distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class Belief:
    """``p_i ~ Beta(alpha_i, beta_i)``, one per prompt."""

    alpha_N: Floats
    beta_N: Floats

    @staticmethod
    def join(parts: Sequence[Belief]) -> Belief:
        """All of them, one part after the other."""
        return Belief(
            np.concatenate([part.alpha_N for part in parts]),
            np.concatenate([part.beta_N for part in parts]),
        )

    def take(self, which: Ints | Bools) -> Belief:
        """Some of them, by index or by mask."""
        return Belief(self.alpha_N[which], self.beta_N[which])

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
