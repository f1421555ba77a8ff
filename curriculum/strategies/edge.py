"""edge: a softened draw by the optimistic chance of a mixed group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curriculum.arrays import Floats, Ints
from curriculum.belief import Belief
from curriculum.mixed import mixed_probability_at, optimistic_score
from curriculum.strategies.base import Choice, Strategy

if TYPE_CHECKING:
    from curriculum.config import SelectionConfig

_SQUARINGS = tuple(2.0**count for count in range(8))
_BLOCK = 1 << 13  # prompts whose dozen temporaries stay in the second-level cache


def weigh_edge(belief: Belief, config: SelectionConfig) -> Floats:
    """``weight_i = (optimistic_score_i / mixed(1/2)) ** sharpness``, in [0, 1]."""
    largest = mixed_probability_at(np.array(0.5), config.group_size)
    score = optimistic_score(belief, config.group_size, config.optimism)
    return _power(score / largest, config.sharpness)


def choose_weighted(choice: Choice, rng: np.random.Generator) -> Ints:
    """Successive draws without replacement in proportion to the weights, by exponential clocks.

    The first `count` of independent clocks with rates weight_i ring in the order of such a draw;
    the Gumbel top-k of ``log weight_i`` is the same. A weight of 0 rings last of all.

    Source: Efraimidis and Spirakis (2006), Inf. Process. Lett. 97:181-185.
    """
    blocks = np.array_split(choice.candidates_C, len(choice.candidates_C) // _BLOCK + 1)
    beliefs = (choice.pool.belief_at(block_M, choice.prior) for block_M in blocks)
    weights_C = np.concatenate([weigh_edge(belief, choice.config) for belief in beliefs])
    with np.errstate(over="ignore", divide="ignore"):  # a clock may never ring
        clocks_C = rng.standard_exponential(len(weights_C)) / weights_C
    return choice.candidates_C[np.argpartition(clocks_C, choice.count - 1)[: choice.count]]


def _power(base: Floats, exponent: float) -> Floats:
    """``base ** exponent``, by squaring where that suffices: the general power costs ten times."""
    if exponent not in _SQUARINGS:
        general: Floats = base**exponent
        return general
    while exponent > 1.0:
        base, exponent = base * base, exponent / 2.0
    return base


EDGE = Strategy(choose=choose_weighted, weigh=weigh_edge)
