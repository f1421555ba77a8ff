"""uniform: every prompt once before any twice."""

import numpy as np

from curriculum.arrays import Ints
from curriculum.strategies.base import Choice, Strategy


def choose_longest_rested(choice: Choice, rng: np.random.Generator) -> Ints:
    """Those served longest ago, never served first, ties at random.

    The first pass over the pool is sampling without replacement; the later ones repeat its order.
    """
    last_served_C = choice.pool.last_served_step_N[choice.candidates_C]
    turn_C = last_served_C + rng.random(len(last_served_C))
    first = np.argpartition(turn_C, choice.count - 1)[: choice.count]
    return choice.candidates_C[first]


UNIFORM = Strategy(choose=choose_longest_rested, reserves=False)
