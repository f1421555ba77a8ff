"""Some prompts of a pool as a model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from curriculum.arrays import Bools, Floats, Ints
from curriculum.belief import Belief
from curriculum.evidence import gather, gather_squares
from curriculum.model import Model, State
from curriculum.spread import relative_spread

if TYPE_CHECKING:  # a pool makes sights of itself
    from curriculum.pool import Pool

_MOST_FORESEEN = 0.5  # logits: a trend that nobody has seen go on is not followed for long
_PRIOR_ATTEMPTS = 8.0  # from a group on a prompt's own tokens count as much as the pool's
_COST_RANGE = (0.125, 8.0)


@dataclass(frozen=True)
class Sight:
    """M prompts of a pool."""

    pool: Pool
    model: Model
    indices_M: Ints

    @cached_property
    def _state(self) -> State:
        """At the pool's policy step: as they were settled, then the block that is open."""
        pool, model = self.pool, self.model
        if model.settled is not None:
            state = model.settled.take(self.indices_M)
        else:
            state = pool.settle(self.indices_M, model)
        if not pool.blocks:
            return state
        *closed, newest = pool.blocks
        domain_M = pool.domain_N[self.indices_M].astype(np.intp)
        if closed:
            gap = newest.mid_step - closed[-1].mid_step
            state = model.wait(state, gap, len(closed), domain_M)
        (seen,) = gather([newest], self.indices_M).rows()
        state = model.add(state, seen, domain_M)
        gap = pool.policy_step - newest.mid_step
        count = len(pool.blocks)
        return model.wait(state, gap, count, domain_M, most_shift=_MOST_FORESEEN)

    @property
    def belief(self) -> Belief:
        """Over their pass rates at the pool's policy step."""
        return self._state.belief

    @property
    def worn(self) -> Floats:
        """Attempts trained on of late."""
        return self._state.worn_M

    @property
    def is_new_M(self) -> Bools:
        """Whether they were never attempted."""
        is_new_M: Bools = self.pool.attempts_N[self.indices_M] == 0
        return is_new_M

    def spread(self) -> Floats | None:
        """The spread of their rewards to what is usual; None where rewards are 0 or 1."""
        squares_M = gather_squares(self.pool.blocks, self.indices_M)
        if squares_M is None:
            return None
        seen = gather(self.pool.blocks, self.indices_M)
        sums_M, attempts_M = seen.passes.sum(axis=0), seen.attempts.sum(axis=0)
        return relative_spread(sums_M, squares_M, attempts_M, self.model.grain)

    def relative_cost(self) -> Floats:
        """Expected tokens of an attempt to the pool's mean, from 1/8 to 8; 1 if none are known."""
        pool = self.pool
        if pool.tokens_N is None or not pool.mean_tokens:
            return np.ones(len(self.indices_M))
        tokens_M, attempts_M = pool.tokens_N[self.indices_M], pool.attempts_N[self.indices_M]
        known_M = np.where(tokens_M > 0, attempts_M, 0)
        own_M = (tokens_M / pool.mean_tokens + _PRIOR_ATTEMPTS) / (known_M + _PRIOR_ATTEMPTS)
        cost_M: Floats = np.clip(own_M, *_COST_RANGE)
        return cost_M
