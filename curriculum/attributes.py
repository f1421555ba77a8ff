"""Columns of a feature matrix from numbers and labels that prompts were given."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Bools, Floats, Singles
from curriculum.description import Descriptions
from curriculum.scaling import Scale, fit_scale

MAX_ATTRIBUTES = 32
MAX_TAGS = 64
LEAST_SHARE = 0.005
"""What fewer of the prompts have, or lack, tells too few apart to learn its weight."""

# A rate of 0 or 1 was measured with some tens of attempts at most.
_RATE_RANGE = (0.02, 0.98)


@dataclass(frozen=True)
class AttributeColumns:
    """Standardised attributes. A prompt without one has the mean, 0."""

    attributes: tuple[str, ...]
    rate_K: Bools
    """Which are rates: their logit counts."""
    scale: Scale

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"feature:{name}" for name in self.attributes)

    def encode(self, prompts: Descriptions, first: int) -> Singles:
        """(M, K) within 5 sd; `first` does not matter."""
        values_MK = _values(prompts.attributes, self.attributes)
        standard_MK = self.scale.apply(_logits_where(self.rate_K, values_MK))
        return np.nan_to_num(standard_MK, nan=0.0).astype(np.float32)


@dataclass(frozen=True)
class AbsenceColumns:
    """1 where a prompt lacks an attribute, or with the name None an embedding."""

    attributes: tuple[str | None, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(
            "no embedding" if name is None else f"no feature:{name}" for name in self.attributes
        )

    def encode(self, prompts: Descriptions, first: int) -> Singles:
        """(M, K) of 0 and 1; `first` does not matter."""
        columns = [
            [vector is None for vector in prompts.embeddings]
            if name is None
            else [name not in given for given in prompts.attributes]
            for name in self.attributes
        ]
        return np.array(columns, np.float32).reshape(len(columns), len(prompts)).T


@dataclass(frozen=True)
class TagColumns:
    """1 where a prompt has a tag."""

    tags: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"tag:{tag}" for tag in self.tags)

    def encode(self, prompts: Descriptions, first: int) -> Singles:
        """(M, K) of 0 and 1; `first` does not matter."""
        column = {tag: number for number, tag in enumerate(self.tags)}
        has_MK = np.zeros((len(prompts), len(self.tags)), np.float32)
        cells = [
            (row, column[tag])
            for row, tags in enumerate(prompts.tags)
            for tag in tags
            if tag in column
        ]
        if cells:
            has_MK[tuple(np.array(cells).T)] = 1.0
        return has_MK


def fit_attributes(sample: Descriptions) -> AttributeColumns:
    """The numbers that at least 0.5% of a sample have and that differ, the most frequent 32.

    Standardised by `fit_scale` over the prompts that have them. One that lies within [0, 1] on both
    sides of 1/2 is taken for a rate, such as another model's pass rate, and counts by its logit,
    ``log(p / (1 - p))`` with p clipped to [.02, .98]: difficulty is additive there.
    """
    counts = Counter(name for given in sample.attributes for name in given)
    names = _frequent(counts, len(sample), MAX_ATTRIBUTES)
    values_MK = _values(sample.attributes, names)
    rate_K = np.array([_is_rate(column_M) for column_M in values_MK.T], bool)
    scales = [
        fit_scale(column_M[~np.isnan(column_M), None])
        for column_M in _logits_where(rate_K, values_MK).T
    ]
    kept_K = np.array([bool(scale.varies_K[0]) for scale in scales], bool)
    joined = Scale(
        np.array([scale.size_K[0] for scale in scales]),
        np.array([scale.centre_K[0] for scale in scales]),
        np.array([scale.sd_K[0] for scale in scales]),
    )
    kept = tuple(name for name, is_kept in zip(names, kept_K, strict=True) if is_kept)
    return AttributeColumns(kept, rate_K[kept_K], joined.take(kept_K))


def fit_absences(sample: Descriptions, room: int) -> AbsenceColumns:
    """What 0.5% to 99.5% of a sample lack: the most evenly divided first."""
    counts: Counter[str | None] = Counter(name for given in sample.attributes for name in given)
    counts[None] = sum(vector is not None for vector in sample.embeddings)
    divided = {
        name: abs(2 * count - len(sample))
        for name, count in counts.items()
        if _tells_apart(count, len(sample))
    }
    order = sorted(divided, key=lambda name: (divided[name], name is not None, name or ""))
    return AbsenceColumns(tuple(order[:room]))


def fit_tags(sample: Descriptions) -> TagColumns:
    """The tags that 0.5% to 99.5% of a sample have: the most frequent, at most 64."""
    counts = Counter(tag for tags in sample.tags for tag in set(tags))
    telling = Counter(
        {tag: count for tag, count in counts.items() if _tells_apart(count, len(sample))}
    )
    return TagColumns(_frequent(telling, len(sample), MAX_TAGS))


def _tells_apart(count: int, total: int) -> bool:
    return LEAST_SHARE * total <= count <= (1.0 - LEAST_SHARE) * total and 0 < count < total


def _frequent(counts: Counter[str], total: int, most: int) -> tuple[str, ...]:
    """Names that enough have, the most frequent first, equally frequent ones by name."""
    enough = [name for name, count in counts.items() if count >= LEAST_SHARE * total]
    return tuple(sorted(enough, key=lambda name: (-counts[name], name))[:most])


def _values(given: Sequence[Mapping[str, float]], names: Sequence[str]) -> Floats:
    """(M, K); NaN where a prompt lacks an attribute."""
    rows = [[attributes.get(name, np.nan) for name in names] for attributes in given]
    return np.array(rows, np.float64).reshape(len(given), len(names))


def _is_rate(column_M: Floats) -> bool:
    known = column_M[~np.isnan(column_M)]
    return bool(known.size and 0.0 <= known.min() < 0.5 < known.max() <= 1.0)


def _logits_where(rate_K: Bools, values_MK: Floats) -> Floats:
    rates_MK = np.clip(values_MK[:, rate_K], *_RATE_RANGE)
    logits_MK = values_MK.copy()
    logits_MK[:, rate_K] = np.log(rates_MK) - np.log1p(-rates_MK)
    return logits_MK
