"""Even samples."""

import numpy as np

from curriculum.arrays import Ints

_GOLDEN_RATIO = 0.6180339887498949


def even_sample(count: int, most: int) -> Ints:
    """Of the numbers below `count` all, or up to `most` that are spread evenly; always the same.

    By the golden ratio, which unlike a stride never falls into step with interleaved domains. Of
    hardly more than `most` some are hit twice, and a few less are taken.
    """
    if count <= most:
        return np.arange(count)
    spread = np.arange(most) * _GOLDEN_RATIO % 1.0
    return np.unique((spread * count).astype(np.intp))
