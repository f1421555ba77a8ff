"""Columns of a feature matrix from embeddings: their principal components."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Bools, Reals, Singles
from curriculum.axes import leading_axes
from curriculum.description import Descriptions
from curriculum.errors import require
from curriculum.scaling import Scale, fit_scale

MAX_EMBEDDING_COMPONENTS = 32
PIECE_ROWS = 256
"""Rows of a product. All products have this many, and a prompt always has the same place in its
own: so its numbers do not depend, to the bit, on which others are encoded with it."""


@dataclass(frozen=True)
class EmbeddingColumns:
    """Standardised principal components. A prompt without an embedding has the mean, 0."""

    size: float
    centre_E: Singles
    axes_EK: Singles
    kept_K: Bools
    scale: Scale

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"embedding:{number}" for number in np.flatnonzero(self.kept_K))

    def encode(self, prompts: Descriptions, first: int) -> Singles:
        """(M, K) within 5 sd, of the prompts from the pool's number `first` on.

        Raises:
            InvalidInputError: the embeddings are not as long as those of the sample.
        """
        columns_MK = np.zeros((len(prompts), len(self.names)), np.float32)
        start = 0
        while start < len(prompts):
            place = (first + start) % PIECE_ROWS
            stop = min(len(prompts), start + PIECE_ROWS - place)
            vectors = prompts.embeddings[start:stop]
            has_M = np.array([vector is not None for vector in vectors], bool)
            if has_M.any():
                raw_MK = self._project(vectors, place)[has_M]
                columns_MK[start:stop][has_M] = self.scale.apply(raw_MK)
            start = stop
        return columns_MK

    def _project(self, vectors: Sequence[Reals | None], place: int) -> Singles:
        rows = slice(place, place + len(vectors))
        piece_RE = np.zeros((PIECE_ROWS, len(self.centre_E)), np.float32)
        piece_RE[rows] = _rows(vectors, self.centre_E)
        piece_RE /= np.float32(self.size)
        piece_RE -= self.centre_E
        components_RK: Singles = piece_RE @ self.axes_EK
        return components_RK[rows, self.kept_K]


def fit_embeddings(sample: Descriptions) -> EmbeddingColumns | None:
    """The directions in which a sample's embeddings vary most; None where there are no two.

    ``z = V' (x - mean)`` with V the leading 32 principal axes, each component standardised.
    """
    given = [vector for vector in sample.embeddings if vector is not None]
    if len(given) < 2:
        return None
    rows_ME = np.stack(given).astype(np.float32)
    # One factor for all: components keep their proportions, and no sum overflows.
    size = max(float(np.abs(rows_ME).max()), 1e-30)
    rows_ME /= size
    centre_E = rows_ME.mean(axis=0)
    rows_ME -= centre_E
    axes_EK = leading_axes(rows_ME, MAX_EMBEDDING_COMPONENTS)
    scale = fit_scale(rows_ME @ axes_EK)
    kept_K = scale.varies_K
    if not kept_K.any():
        return None
    return EmbeddingColumns(size, centre_E, axes_EK, kept_K, scale.take(kept_K))


def _rows(vectors: Sequence[Reals | None], centre_E: Singles) -> Singles:
    rows_ME = np.zeros((len(vectors), len(centre_E)), np.float32)
    for row, vector in enumerate(vectors):
        if vector is not None:
            shape, wanted = vector.shape, centre_E.shape
            require(shape == wanted, "embedding.shape", shape, f"{wanted}, as the first ones")
            rows_ME[row] = vector
    return rows_ME
