"""The ledger as selection sees it: counts by blocks of policy steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats, Ints


@dataclass(frozen=True)
class Block:
    """What came of the attempts of a range of policy steps.

    Attributes:
        mid_step: the middle of the range.
        attempts_N: attempts of each prompt.
        passes_N: how many of them passed; where rewards are graded, the sum of their objective.
        squares_N: sum of the squared objective; None where it is 0 or 1.
        unit: what counts as 1 in sums of the objective, if they are in fixed point.
    """

    mid_step: float
    attempts_N: Ints | Floats
    passes_N: Ints | Floats
    squares_N: Ints | Floats | None = None
    unit: float = 1.0


def gather(blocks: Sequence[Block], indices_M: Ints) -> tuple[Floats, Floats]:
    """Passes and attempts of some prompts, (W, M) each."""
    shape = (len(blocks), len(indices_M))
    passes_WM, attempts_WM = np.empty(shape), np.empty(shape)
    for row, block in enumerate(blocks):
        np.divide(block.passes_N.take(indices_M), block.unit, out=passes_WM[row])
        attempts_WM[row] = block.attempts_N.take(indices_M)
    return passes_WM, attempts_WM


def gather_squares(blocks: Sequence[Block], indices_M: Ints) -> Floats | None:
    """Squared objectives of some prompts over all blocks; None where it is 0 or 1."""
    if all(block.squares_N is None for block in blocks):
        return None
    squares_M = np.zeros(len(indices_M))
    for block in blocks:  # 0 and 1 are their own squares
        column_N = block.passes_N if block.squares_N is None else block.squares_N
        squares_M += column_N.take(indices_M) / block.unit
    return squares_M
