"""Numbers of any size and shape made comparable."""

from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Bools, Floats, Reals

_TAIL = 0.005  # of a sample's values, at each end, that do not tell the scale
_MOST_SD = 5.0
# Below this part of the values' size a spread is rounding.
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Scale:
    """``clip((x - centre) / sd, -5, 5)`` for each column, as of a sample."""

    size_K: Floats
    """What values are divided by first, so that no square overflows."""
    centre_K: Floats
    sd_K: Floats
    """In units of the size; above 0 where `varies_K`."""

    @property
    def varies_K(self) -> Bools:
        """Whether a column told prompts of the sample apart."""
        varies: Bools = self.sd_K > _LEAST_SPREAD
        return varies

    def take(self, kept_K: Bools) -> "Scale":
        """The scale of some of the columns."""
        return Scale(self.size_K[kept_K], self.centre_K[kept_K], self.sd_K[kept_K])

    def apply(self, values_MK: Reals) -> Floats:
        """Standardised values; each row by itself. Only for columns that vary."""
        with np.errstate(over="ignore"):
            standard_MK = (values_MK / self.size_K - self.centre_K) / self.sd_K
        return np.clip(standard_MK, -_MOST_SD, _MOST_SD)


def fit_scale(sample_MK: Reals) -> Scale:
    """The centre and spread of each column, which a few wild values do not move.

    Mean and standard deviation after the lowest and the highest 0.5% were moved to the quantiles
    there. A column that is constant between them keeps its tails: they are all it says.

    Args:
        sample_MK: (M, K) finite, M >= 0; of no rows every column is constant.
    """
    columns = sample_MK.shape[1]
    if not len(sample_MK):
        return Scale(np.ones(columns), np.zeros(columns), np.zeros(columns))
    values_MK = sample_MK.astype(np.float64)
    low_K, high_K = np.quantile(values_MK, [_TAIL, 1.0 - _TAIL], axis=0, method="nearest")
    inner_MK = np.where(low_K < high_K, np.clip(values_MK, low_K, high_K), values_MK)
    size_K = np.abs(inner_MK).max(axis=0)
    size_K[size_K == 0.0] = 1.0
    inner_MK /= size_K
    return Scale(size_K, inner_MK.mean(axis=0), inner_MK.std(axis=0))
