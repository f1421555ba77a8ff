"""The feature matrix of a pool: what its prompts were described with, as numbers for a regression.

All that is fitted (means, which tags count, axes) is fitted on a sample of the first 2**k prompts,
with 2**k the largest power of two that the pool has. So a prompt that is added moves no other until
the pool has doubled, a pool that grows in pieces costs as much as twice one of its size, and how it
grew does not matter: the same prompts have the same matrix, to the bit on one machine. Nor does a
prompt that is described otherwise later move others, unless it is in the sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from curriculum.arrays import Halves, Ints, Singles
from curriculum.attributes import fit_absences, fit_attributes, fit_tags
from curriculum.description import Descriptions, PromptSource
from curriculum.embedding import fit_embeddings
from curriculum.errors import require
from curriculum.sampling import even_sample
from curriculum.text import TextBasis, fit_text_basis

MAX_COLUMNS = 128
SAMPLE_PROMPTS = 1 << 12
"""Enough for a tag of one prompt in 200 to be there some 20 times."""

_READ_PROMPTS = 1 << 10
_NO_PROMPTS = np.zeros(0, np.intp)


class Columns(Protocol):
    """Some columns of the matrix."""

    @property
    def names(self) -> tuple[str, ...]:
        """One per column."""

    def encode(self, prompts: Descriptions, first: int) -> Singles:
        """(M, K) of the prompts from the pool's number `first` on, each row by itself."""


@dataclass(frozen=True)
class Features:
    """What is known of N prompts before they are attempted.

    Attributes:
        values_NK: float16: 2 bytes a number, and 11 bits are more than a description is worth.
            Within 5; mean 0 and sd 1 over the sample, but for labels, which are 0 or 1.
        names: of the K <= 128 columns: `feature:NAME`, `no feature:NAME`, `embedding:NUMBER`,
            `no embedding`, `text:NUMBER`, `text:length`, `text:digits`, `text:symbols`, `tag:NAME`.
        columns: what made them, and makes those of further prompts.
    """

    values_NK: Halves
    names: tuple[str, ...]
    columns: tuple[Columns, ...]

    def __len__(self) -> int:
        return len(self.values_NK)


def design_matrix(prompts: PromptSource) -> Features:
    """The features of all prompts; see the modules of the columns for what they are.

    Numbers and embeddings, or the texts where the sample has neither; then labels, and what is
    absent as far as there is room: at most 128 columns.
    """
    sample = even_sample(_fitted_count(len(prompts)), SAMPLE_PROMPTS)
    columns = _fit(prompts.read(sample))
    names = tuple(name for part in columns for name in part.names)
    values_NK = np.empty((len(prompts), len(names)), np.float16)
    empty = Features(values_NK[:0], names, columns)
    for start, rows_MK in _encoded(empty, prompts):
        values_NK[start : start + len(rows_MK)] = rows_MK
    return Features(values_NK, names, columns)


def extend(
    features: Features, prompts: PromptSource, redescribed_M: Ints = _NO_PROMPTS
) -> Features:
    """The features of a pool that has grown at its end: those of `design_matrix`.

    Args:
        redescribed_M: prompts of the features that are described otherwise by now.

    Raises:
        InvalidInputError: it has fewer prompts than the features.
    """
    require(len(prompts) >= len(features), "len(prompts)", len(prompts), f">= {len(features)}")
    if len(prompts) == len(features) and not len(redescribed_M):
        return features
    fitted_count = _fitted_count(len(prompts))
    sample = even_sample(fitted_count, SAMPLE_PROMPTS)
    if fitted_count != _fitted_count(len(features)) or np.isin(redescribed_M, sample).any():
        return design_matrix(prompts)
    parts = [features.values_NK, *(rows_MK for _, rows_MK in _encoded(features, prompts))]
    values_NK = np.concatenate(parts)
    for start in np.unique(redescribed_M // _READ_PROMPTS * _READ_PROMPTS).tolist():
        stop = min(start + _READ_PROMPTS, len(features))
        values_NK[start:stop] = _rows(features, prompts, start, stop)
    return Features(values_NK, features.names, features.columns)


def _encoded(known: Features, prompts: PromptSource) -> Iterator[tuple[int, Halves]]:
    """The rows of the prompts that are not known yet, and where each piece of them begins."""
    for start in range(len(known), len(prompts), _READ_PROMPTS):
        stop = min(start + _READ_PROMPTS, len(prompts))
        yield start, _rows(known, prompts, start, stop)


def _rows(known: Features, prompts: PromptSource, start: int, stop: int) -> Halves:
    """The rows of the prompts in [start, stop), in the known columns."""
    read = prompts.read(np.arange(start, stop))
    rows_MK = np.empty((len(read), len(known.names)), np.float16)
    at = 0
    for part in known.columns:
        encoded = part.encode(read, start)
        rows_MK[:, at : at + encoded.shape[1]] = encoded
        at += encoded.shape[1]
    return rows_MK


def _fit(sample: Descriptions) -> tuple[Columns, ...]:
    attributes, embeddings = fit_attributes(sample), fit_embeddings(sample)
    parts: list[Columns] = [attributes, *([embeddings] if embeddings else [])]
    if not any(part.names for part in parts):
        parts.append(_TextColumns(fit_text_basis(sample.texts)))
    parts.append(fit_tags(sample))
    room = MAX_COLUMNS - sum(len(part.names) for part in parts)
    parts.append(fit_absences(sample, room))
    return tuple(part for part in parts if part.names)


@dataclass(frozen=True)
class _TextColumns:
    basis: TextBasis

    @property
    def names(self) -> tuple[str, ...]:
        return self.basis.names

    def encode(self, prompts: Descriptions, first: int) -> Singles:
        return self.basis.encode(prompts.texts)


def _fitted_count(prompt_count: int) -> int:
    """The largest power of two of at most so many prompts; 0 of none."""
    return 1 << (prompt_count.bit_length() - 1) if prompt_count else 0
