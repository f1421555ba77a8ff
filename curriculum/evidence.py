"""The ledger as selection sees it: counts by blocks of policy steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        probed_N: attempts that nothing was trained on; None is none.
        unit: what counts as 1 in sums of the objective, if they are in fixed point.
    """

    mid_step: float
    attempts_N: Ints | Floats
    passes_N: Ints | Floats
    squares_N: Ints | Floats | None = None
    probed_N: Ints | None = None
    unit: float = 1.0

    @property
    def trained_count(self) -> float:
        """Attempts of all prompts that were trained on."""
        probed = 0 if self.probed_N is None else int(self.probed_N.sum())
        return float(self.attempts_N.sum()) - probed


@dataclass(frozen=True)
class Evidence:
    """What blocks, or one of them, hold of M prompts.

    Attributes:
        passes: (W, M) or (M,); where rewards are graded, sums of the objective.
        attempts: the same shape.
        trained: those of the attempts that were trained on.
    """

    passes: Floats
    attempts: Floats
    trained: Floats

    def rows(self) -> Iterator[Evidence]:
        """One block after the other."""
        return map(Evidence, self.passes, self.attempts, self.trained)

    def over(self, grain: float) -> Evidence:
        """Counted in units of so many attempts."""
        return Evidence(self.passes / grain, self.attempts / grain, self.trained / grain)

    @property
    def fails(self) -> Floats:
        """Attempts that did not pass."""
        return self.attempts - self.passes


def gather(blocks: Sequence[Block], indices_M: Ints) -> Evidence:
    """Of some prompts, by block."""
    shape = (len(blocks), len(indices_M))
    passes_WM, attempts_WM = np.empty(shape), np.empty(shape)
    for row, block in enumerate(blocks):
        np.divide(block.passes_N.take(indices_M), block.unit, out=passes_WM[row])
        attempts_WM[row] = block.attempts_N.take(indices_M)
    if all(block.probed_N is None for block in blocks):
        return Evidence(passes_WM, attempts_WM, attempts_WM)
    trained_WM = attempts_WM.copy()
    for row, block in enumerate(blocks):
        if block.probed_N is not None:
            trained_WM[row] -= block.probed_N.take(indices_M)
    return Evidence(passes_WM, attempts_WM, trained_WM)


def gather_squares(blocks: Sequence[Block], indices_M: Ints) -> Floats | None:
    """Squared objectives of some prompts over all blocks; None where it is 0 or 1."""
    if all(block.squares_N is None for block in blocks):
        return None
    squares_M = np.zeros(len(indices_M))
    for block in blocks:  # 0 and 1 are their own squares
        column_N = block.passes_N if block.squares_N is None else block.squares_N
        squares_M += column_N.take(indices_M) / block.unit
    return squares_M
