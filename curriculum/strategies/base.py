"""The parts of a strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from curriculum.arrays import Floats, Ints
from curriculum.belief import Belief

if TYPE_CHECKING:  # the configuration imports the strategies, to know their names
    from curriculum.config import SelectionConfig
    from curriculum.pool import Pool
    from curriculum.prior import Prior


@dataclass(frozen=True)
class Choice:
    """One choice to make: `count` of the candidates, which are more than that."""

    pool: Pool
    prior: Prior
    config: SelectionConfig
    candidates_C: Ints
    count: int


@dataclass(frozen=True)
class Strategy:
    """How prompts are chosen.

    Attributes:
        choose: `count` distinct prompts of the candidates.
        weigh: weights in [0, 1], where `choose` is a successive draw without replacement in
            proportion to them; composition then draws most of a batch without a pass over the pool.
        reserves: whether review, reach and the rest period apply.
    """

    choose: Callable[[Choice, np.random.Generator], Ints]
    weigh: Callable[[Belief, SelectionConfig], Floats] | None = None
    reserves: bool = True
