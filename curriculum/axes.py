"""The leading axes of a matrix: a truncated singular value decomposition."""

import numpy as np

from curriculum.arrays import Hashes, Singles
from curriculum.errors import require

# Eight spare axes and five rounds: an axis whose singular value exceeds that of the ninth behind it
# by a tenth is then found to (1 / 1.1)**(2 * 5) of itself, and what matters stands out further.
_SPARE_AXES = 8
_ROUNDS = 5
# An axis below this share of the first is rounding: rows are single precision.
_LEAST_SHARE = 1e-5


def leading_axes(rows_ME: Singles, count: int) -> Singles:
    """The orthonormal axes along which the rows have the largest squares, by subspace iteration.

    With ``X = U S V'`` these are the first columns of V. From a fixed start Q_0 of ``count + 8``
    columns, ``Q_{i+1} = orth(X' (X Q_i))``, and at the end V = Q W with W from the decomposition
    of ``X Q``. An axis has the sign that makes its largest entry positive. The rows are taken as
    they are: centre them first if the axes shall be principal components.

    The same rows give the same bits wherever the same BLAS runs on the same processor.

    Source: Halko, Martinsson & Tropp (2011), SIAM Review 53:217-288, algorithm 4.4.
    Differs: the start is a fixed pattern, so that the result depends on the rows alone.

    Args:
        rows_ME: (M, E) float32, finite.
        count: K >= 0, how many axes at most.

    Returns:
        (E, K') float32, K' <= K: fewer where the rows span fewer dimensions.

    Raises:
        InvalidInputError: count < 0.
    """
    require(count >= 0, "count", count, ">= 0")
    row_count, width = rows_ME.shape
    if not (count and row_count and width):
        return np.zeros((width, 0), np.float32)
    basis_EQ = _pattern(width, min(count + _SPARE_AXES, width))
    for _ in range(_ROUNDS):
        basis_EQ = np.linalg.qr(rows_ME.T @ (rows_ME @ basis_EQ))[0]
    _, sizes_Q, turn_QQ = np.linalg.svd(rows_ME @ basis_EQ, full_matrices=False)
    kept = np.count_nonzero(sizes_Q[:count] > max(_LEAST_SHARE * sizes_Q[0], 1e-30))
    axes_EK: Singles = basis_EQ @ turn_QQ[:kept].T
    largest_K = np.abs(axes_EK).argmax(axis=0)
    signs_K = np.sign(axes_EK[largest_K, np.arange(kept)])
    return np.ascontiguousarray(axes_EK * signs_K, dtype=np.float32)


def scrambled(values: Hashes) -> Hashes:
    """Each 64-bit number scrambled, so that all its bits look random: a bijection.

    Source: Steele, Lea & Flood (2014), OOPSLA 453-472, the finaliser of SplitMix64.
    """
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _pattern(height: int, width: int) -> Singles:
    """Numbers in [-1/2, 1/2) without structure; no generator's stream, which may change."""
    numbers = scrambled(np.arange(1, height * width + 1, dtype=np.uint64))
    uniform = (numbers >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    return (uniform - np.float32(0.5)).reshape(height, width)
