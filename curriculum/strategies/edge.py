"""edge: a softened draw by what a group is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curriculum.arrays import Floats, Ints
from curriculum.pool import pieces
from curriculum.sight import Sight
from curriculum.strategies.base import Choice, Strategy, Weigh
from curriculum.worth import Worth, expected_mixed

if TYPE_CHECKING:  # the configuration imports the strategies, to know their names
    from curriculum.config import SelectionConfig

_SQUARINGS = tuple(2.0**count for count in range(11))
_LOOKS = 2048  # prompts from which the bar and the best worth are estimated


def appraise_edge(choice: Choice, rng: np.random.Generator) -> Weigh:
    """``weight_i = min(worth_i / best, 1) ** sharpness``.

    The bar over which learning something is worth anything, the chance of a mixed group of the last
    prompt of a greedy batch, and the best worth are those of a random part of the candidates.
    """
    pool, config, candidates_C = choice.pool, choice.config, choice.candidates_C
    if len(candidates_C) > _LOOKS:
        candidates_C = candidates_C[rng.integers(0, len(candidates_C), _LOOKS)]
    seen = pool.look(candidates_C, choice.model)
    mixed_C = np.sort(expected_mixed(seen.belief, config.group_size))
    above = int(choice.count * len(candidates_C) / max(len(choice.candidates_C), 1))
    bar = float(mixed_C[-1 - min(above, len(mixed_C) - 1)])
    worth = Worth.over(bar, config.group_size, config.optimism)

    def appraise(sight: Sight) -> Floats:
        return worth.at(sight.belief, sight.is_new_M) * _usefulness(sight, config)

    best = float(appraise(seen).max(initial=0.0))

    def weigh(indices_M: Ints) -> Floats:
        worth_M = appraise(pool.look(indices_M, choice.model))
        return _power(np.minimum(worth_M / best, 1.0), config.sharpness)

    return weigh if best > 0.0 else lambda indices_M: np.ones(len(indices_M))


def _usefulness(sight: Sight, config: SelectionConfig) -> Floats | float:
    """What a mixed group of each prompt is worth beside that of another: the spread of its
    rewards, the less the more often it was served of late, and per token as far as they count."""
    spread_M = sight.spread()
    useful: Floats | float = 1.0 if spread_M is None else spread_M
    if config.wear_visits:
        pace = max(sight.model.dynamics.pace, 1.0)  # the larger the steps, the sooner by heart
        visits_M = sight.worn / config.group_size
        useful = useful / (1.0 + pace * visits_M / config.wear_visits)
    if config.token_weight:
        useful = useful / sight.relative_cost() ** config.token_weight
    return useful


def choose_weighted(choice: Choice, rng: np.random.Generator) -> Ints:
    """Successive draws without replacement in proportion to the weights, by exponential clocks.

    The first `count` of independent clocks with rates weight_i ring in the order of such a draw;
    the Gumbel top-k of ``log weight_i`` is the same. A weight of 0 rings last of all.

    Source: Efraimidis and Spirakis (2006), Inf. Process. Lett. 97:181-185.
    """
    weigh = appraise_edge(choice, rng)
    weights_C = np.concatenate([weigh(piece_M) for piece_M in pieces(choice.candidates_C)])
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


EDGE = Strategy(choose=choose_weighted, appraise=appraise_edge)
