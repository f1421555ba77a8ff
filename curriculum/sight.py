"""Some prompts of a pool as a model sees them, each thing worked out once and only if asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from curriculum.arrays import Bools, Floats, Ints
from curriculum.belief import Belief
from curriculum.evidence import gather, gather_squares
from curriculum.model import Model
from curriculum.spread import relative_spread

if TYPE_CHECKING:  # a pool makes sights of itself
    from curriculum.pool import Pool

_PRIOR_ATTEMPTS = 8.0  # from a group on a prompt's own tokens count as much as the pool's
_COST_RANGE = (0.125, 8.0)


@dataclass(frozen=True)
class Sight:
    """M prompts of a pool."""

    pool: Pool
    model: Model
    indices_M: Ints

    @cached_property
    def _counts(self) -> tuple[Floats, Floats]:
        """(W, M) passes and attempts."""
        return gather(self.pool.blocks, self.indices_M)

    @cached_property
    def belief(self) -> Belief:
        """Over their pass rates at the pool's policy step."""
        pool, known = self.pool, self.pool.known_of(self.indices_M)
        mid_W = np.array([block.mid_step for block in pool.blocks])
        return self.model.belief(*self._counts, mid_W, *known, pool.policy_step)

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
        passes_WM, attempts_WM = self._counts
        sums_M, attempts_M = passes_WM.sum(axis=0), attempts_WM.sum(axis=0)
        return relative_spread(sums_M, squares_M, attempts_M, self.model.grain)

    def recent_attempts(self, steps: int) -> Floats:
        """Attempts in the blocks of the last policy steps."""
        since = self.pool.policy_step - steps
        recent = [row for row, block in enumerate(self.pool.blocks) if block.mid_step > since]
        attempts_M: Floats = self._counts[1][recent].sum(axis=0)
        return attempts_M

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
