"""What selection sees and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

import numpy as np

from curriculum.arrays import Bools, Bytes, Floats, Ints, Reals
from curriculum.belief import Belief
from curriculum.errors import require
from curriculum.evidence import Block, gather
from curriculum.interval import credible_interval
from curriculum.model import Model, State, fit_model
from curriculum.sight import Sight

PIECE_PROMPTS = 1 << 13
"""So many at once, whose temporaries stay in the second-level cache."""


class Reason(IntEnum):
    """Why a prompt is in a batch."""

    EDGE = 1  # its groups are likely to be mixed
    EXPLORE = 2  # the same, but before anybody attempted it
    REVIEW = 3  # mastered: against forgetting
    REACH = 4  # beyond: with more attempts, in case it no longer is
    UNIFORM = 5  # its turn
    FILL = 6  # the rested prompts ran out
    PROBE = 7  # only to learn its pass rate
    SENTINEL = 8  # the same, as one of its domain's fixed sample
    REFERENCE = 9  # to compare with the reference policy
    PROBE_REACH = 10  # beyond: where a first pass would be news


PROBE_REASONS = (Reason.PROBE, Reason.SENTINEL, Reason.REFERENCE, Reason.PROBE_REACH)
"""Those of prompts on whose attempts nothing is trained."""


@dataclass(frozen=True)
class Pool:
    """The prompts of a run at one policy step.

    Attributes:
        blocks: the ledger, oldest first; the last one still grows.
        attempts_N: attempts ever made, int64.
        domain_N: index into `domains`, int32.
        domains: names.
        last_served_step_N: policy step of the last serving, int64; -1 is never.
        free_N: not leased.
        policy_step: the step for which prompts are chosen.
        features_NK: what is known of the prompts beside their domain, of order 1; None is nothing.
            Half precision is enough.
        tokens_N: tokens of all attempts ever made; None where nobody reported them.
    """

    blocks: tuple[Block, ...]
    attempts_N: Ints
    domain_N: Ints
    domains: tuple[str, ...]
    last_served_step_N: Ints
    free_N: Bools
    policy_step: int
    features_NK: Reals | None = None
    tokens_N: Ints | None = None

    def __post_init__(self) -> None:
        shape = self.attempts_N.shape
        for name in ("domain_N", "last_served_step_N", "free_N"):
            require(getattr(self, name).shape == shape, name, getattr(self, name).shape, f"{shape}")
        for block in self.blocks:
            shapes = (block.attempts_N.shape, block.passes_N.shape)
            require(shapes == (shape, shape), "blocks", shapes, f"{shape} each")
        rows = len(self) if self.features_NK is None else len(self.features_NK)
        require(rows == len(self), "features_NK", rows, f"{len(self)} rows")
        most = int(self.domain_N.max(initial=-1))
        require(most < len(self.domains), "domain_N", most, f"below {len(self.domains)} domains")

    def __len__(self) -> int:
        return len(self.attempts_N)

    def fit(self) -> Model:
        """What the blocks but the last teach, so that a model serves until the next block begins;
        in the first block, what there is. Leases and servings do not matter."""
        blocks = self.blocks[:-1] or self.blocks
        model = fit_model(blocks, self.domain_N, len(self.domains), self.features_NK)
        states = [self.settle(piece_M, model) for piece_M in pieces(np.arange(len(self)))]
        return replace(model, settled=State.join(states))

    def settle(self, indices_M: Ints, model: Model) -> State:
        """What the closed blocks leave of some prompts."""
        closed = self.blocks[:-1]
        mid_W = np.array([block.mid_step for block in closed])
        return model.settle(gather(closed, indices_M), mid_W, *self._known_of(indices_M))

    @cached_property
    def mean_tokens(self) -> float:
        """Tokens of an attempt, over the prompts of which they are known; 0 if none are."""
        if self.tokens_N is None:
            return 0.0
        attempts = int(self.attempts_N[self.tokens_N > 0].sum())
        return float(self.tokens_N.sum() / attempts) if attempts else 0.0

    def look(self, indices_M: Ints, model: Model) -> Sight:
        """At some prompts."""
        return Sight(self, model, indices_M)

    def beliefs(self, model: Model, indices_M: Ints | None = None) -> Belief:
        """The belief over some prompts, or over every one."""
        indices_M = np.arange(len(self)) if indices_M is None else indices_M
        return Belief.join([self.look(piece_M, model).belief for piece_M in pieces(indices_M)])

    def prior_means(self, model: Model) -> Floats:
        """The prior mean of every prompt."""
        known = map(self._known_of, pieces(np.arange(len(self))))
        return np.concatenate([model.prior.mean_at(*known_M) for known_M in known])

    def shortfall(self, served: int, missing: int, others: str = "") -> str:
        """Why a batch is smaller than asked; empty when none are missing.

        Args:
            served: prompts in the batch.
            missing: places that are left.
            others: why the free prompts were not taken, if there are any.
        """
        if not missing:
            return ""
        leased = len(self) - int(np.count_nonzero(self.free_N))
        if len(self) == leased + served or not others:
            others = "the rest of the pool is empty" if leased else "the pool holds no more prompts"
        why = f"{leased} prompts are leased, {others}" if leased else others
        return f"{served} of {served + missing}: {why}"

    def _known_of(self, indices_M: Ints) -> tuple[Ints, Floats | None]:
        """Domains and features."""
        domain_M = self.domain_N[indices_M].astype(np.intp)
        if self.features_NK is None:
            return domain_M, None
        return domain_M, self.features_NK[indices_M].astype(np.float64)


def pieces(indices_M: Ints) -> list[Ints]:
    """At least one, of at most `PIECE_PROMPTS` each."""
    starts = range(0, max(len(indices_M), 1), PIECE_PROMPTS)
    return [indices_M[start : start + PIECE_PROMPTS] for start in starts]


@dataclass(frozen=True)
class Selection:
    """A composed batch, in serving order.

    Attributes:
        indices_B: distinct free prompts, int64.
        attempt_counts_B: attempts to spend on each, int64.
        reasons_B: uint8 of `Reason`.
        pass_rate_B: mean of the belief.
        pass_rate_low_B: lower end of its central 90% interval.
        pass_rate_high_B: upper end of its central 90% interval.
        shortfall: why it is smaller than asked, or "".
    """

    indices_B: Ints
    attempt_counts_B: Ints
    reasons_B: Bytes
    pass_rate_B: Floats
    pass_rate_low_B: Floats
    pass_rate_high_B: Floats
    shortfall: str

    @staticmethod
    def of(
        belief: Belief, indices_B: Ints, *, attempt_counts_B: Ints, reasons_B: Bytes, shortfall: str
    ) -> Selection:
        """With what is believed of its prompts."""
        low_B, high_B = credible_interval(belief.alpha_N, belief.beta_N)
        return Selection(
            indices_B, attempt_counts_B, reasons_B, belief.mean, low_B, high_B, shortfall
        )
