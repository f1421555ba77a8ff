"""The parts of a strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from curriculum.arrays import Floats, Ints

if TYPE_CHECKING:  # the configuration imports the strategies, to know their names
    from curriculum.config import SelectionConfig
    from curriculum.model import Model
    from curriculum.pool import Pool


@dataclass(frozen=True)
class Choice:
    """One choice to make: `count` of the candidates, which are more than that."""

    pool: Pool
    model: Model
    config: SelectionConfig
    candidates_C: Ints
    count: int


Weigh = Callable[[Ints], Floats]
"""From indices of prompts to weights in [0, 1]."""


@dataclass(frozen=True)
class Strategy:
    """How prompts are chosen.

    Attributes:
        choose: `count` distinct prompts of the candidates.
        appraise: from a look at some candidates, what gives any prompts weights in [0, 1], where
            the choice is a successive draw without replacement in proportion to them; composition
            then draws most of a batch without a pass over the pool.
        reserves: whether review, reach and the rest period apply.
    """

    choose: Callable[[Choice, np.random.Generator], Ints]
    appraise: Callable[[Choice, np.random.Generator], Weigh] | None = None
    reserves: bool = True
