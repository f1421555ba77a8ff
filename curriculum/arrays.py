"""Array types. Axes in names: N prompts of the pool, B of a batch, C candidates, M any subset,
W windows, D domains."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Reals = npt.NDArray[np.floating[Any]]
"""Of any precision: they are cast where they are used."""
Ints = npt.NDArray[np.integer[Any]]
Hashes = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
