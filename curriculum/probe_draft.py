"""A batch of probes, and what may be spent on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Ints
from curriculum.errors import require
from curriculum.model import Model
from curriculum.pool import Pool, Reason, Selection


@dataclass(frozen=True)
class ProbeBudget:
    """What may be spent on a batch of probes.

    Attributes:
        prompt_count: most prompts, >= 0.
        rollout_budget: most attempts in all, >= 0.
        attempt_count: attempts of each prompt, >= 1; None for as many as each is worth.
    """

    prompt_count: int
    rollout_budget: int
    attempt_count: int | None = None

    def __post_init__(self) -> None:
        require(self.prompt_count >= 0, "prompt_count", self.prompt_count, ">= 0")
        require(self.rollout_budget >= 0, "rollout_budget", self.rollout_budget, ">= 0")
        is_possible = self.attempt_count is None or self.attempt_count >= 1
        require(is_possible, "attempt_count", self.attempt_count, ">= 1")


class ProbeDraft:
    """A batch of probes while it is put together.

    Args:
        budget: what may be spent.
        spare_count: prompts that training can do without.
    """

    def __init__(self, budget: ProbeBudget, spare_count: int) -> None:
        self._budget, self._spare_count = budget, max(spare_count, 0)
        self._places = min(budget.prompt_count, self._spare_count)
        self._rollouts = budget.rollout_budget
        self._parts: list[tuple[Ints, Ints, Reason]] = []
        self._ran_dry = False

    def take(self, indices_K: Ints, attempts_K: Ints, reason: Reason) -> None:
        """As many as there is room for, the first ones."""
        if self._budget.attempt_count is not None:
            attempts_K = np.full(len(indices_K), self._budget.attempt_count)
        within = np.searchsorted(np.cumsum(attempts_K), self._rollouts, "right")
        count = min(int(within), self._places)
        self._parts.append((indices_K[:count], attempts_K[:count], reason))
        self._places -= count
        self._rollouts -= int(attempts_K[:count].sum())
        self._ran_dry = count == len(indices_K)

    def finish(self, model: Model, pool: Pool, why: str) -> Selection:
        """The batch; `why` the pool has no more, which is said if none was left to be taken."""
        indices_B, attempts_B = (
            np.concatenate([part[column] for part in self._parts]).astype(np.int64)
            for column in (0, 1)
        )
        served = len(indices_B)
        if served == self._spare_count:
            self._ran_dry, why = True, "half of the pool is left to training"
        reasons = [np.full(len(part[0]), part[2], np.uint8) for part in self._parts]
        missing = self._budget.prompt_count - served if self._ran_dry else 0
        return Selection.of(
            pool.beliefs(model, indices_B),
            indices_B,
            attempt_counts_B=attempts_B,
            reasons_B=np.concatenate(reasons),
            shortfall=pool.shortfall(served, missing, why),
        )
