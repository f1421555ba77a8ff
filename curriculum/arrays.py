"""Array types. Axes in names: N prompts of the pool, B of a batch, C candidates, M any subset,
W windows, D domains."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
