"""All that is learned from the pool as a whole: the prior, and how pass rates move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats, Ints, Reals
from curriculum.belief import Belief
from curriculum.dynamics import MOST_SHIFT, Dynamics, bounded, carry, fit_dynamics, lesson, shifted
from curriculum.evidence import Block, Evidence, gather, gather_squares
from curriculum.prior import Prior, fit_prior
from curriculum.sampling import even_sample
from curriculum.spread import fit_grain

# Enough for a standard error of .006 on a mean; more would cost time and change nothing.
_SAMPLE_PROMPTS = 1 << 13
_WEAR_STEPS = 100.0  # as many as `max_share` looks back by default
_NOTHING_KNOWN = 2e-3  # attempts that a prior weighs so that the evidence alone speaks


@dataclass(frozen=True)
class State:
    """M prompts at a policy step.

    Attributes:
        belief: over their pass rates.
        worn_M: attempts trained on of late: they fade by a factor of e in 100 policy steps.
    """

    belief: Belief
    worn_M: Floats

    @staticmethod
    def join(parts: Sequence[State]) -> State:
        """All of them, one part after the other."""
        belief = Belief.join([part.belief for part in parts])
        return State(belief, np.concatenate([part.worn_M for part in parts]))

    def take(self, indices_K: Ints) -> State:
        """Some of them."""
        return State(self.belief.take(indices_K), self.worn_M.take(indices_K))


@dataclass(frozen=True)
class Model:
    """What a pool's blocks say about every prompt, visited or not."""

    prior: Prior
    dynamics: Dynamics
    grain: float = 1.0
    """Variance of an attempt's objective, to that of a pass with the same mean: 1 where it is 0 or
    1. An attempt tells the more of the mean the smaller it is."""
    settled: State | None = None
    """All prompts of the pool at the middle of its last closed block, worked out once for the
    batches of the block that is open."""

    def settle(
        self, evidence: Evidence, mid_W: Floats, domain_M: Ints, features_MK: Floats | None
    ) -> State:
        """The prompts at the middle of the last block: the prior, carried from block to block, the
        counts added.

        The prior is as of the last block, so it starts from where the drifts bring it there.

        Args:
            evidence: by block, (W, M).
            mid_W: the middle of each block, not falling.
            domain_M: in [0, D).
            features_MK: as the prior was fitted with.
        """
        start = self.prior.belief_at(domain_M, features_MK)
        least_M = self.prior.concentration_D.take(domain_M)
        gap_W = np.diff(mid_W)
        drift_WD = self.dynamics.extended(len(mid_W)).drift_WD[1 : len(mid_W)]
        back_M = np.exp(-shifted(drift_WD, gap_W[:, None]).sum(axis=0)).take(domain_M)
        belief = Belief(*carry(start.alpha_N, start.beta_N, least_M, back_M, 0.0))
        state = State(belief, np.zeros(len(domain_M)))
        for row, of_block in enumerate(evidence.rows()):
            if row:
                state = self.wait(state, float(gap_W[row - 1]), row, domain_M)
            state = self.add(state, of_block, domain_M)
        return state

    def wait(
        self, state: State, gap: float, row: int, domain_M: Ints, *, most_shift: float = MOST_SHIFT
    ) -> State:
        """The prompts after the policy steps on the way to the block of that number, along which
        their logits are moved by `most_shift` at most."""
        gap = max(gap, 0.0)
        shift_D = shifted(self.dynamics.extended(row).drift_WD[row], gap)
        odds_M = np.exp(np.clip(shift_D, -most_shift, most_shift)).take(domain_M)
        least_M = self.prior.concentration_D.take(domain_M)
        before = bounded(state.belief.alpha_N, state.belief.beta_N, least_M)
        belief = Belief(*carry(*before, least_M, odds_M, self.dynamics.diffusion * gap))
        return State(belief, state.worn_M * math.exp(-gap / _WEAR_STEPS))

    def add(self, state: State, evidence: Evidence, domain_M: Ints) -> State:
        """The prompts after a block's counts, and what training on them taught."""
        worn_M = state.worn_M + evidence.trained
        counted = evidence.over(self.grain)
        taught_M = 1.0 + self.dynamics.gain * lesson(counted)
        least_M = self.prior.concentration_D.take(domain_M)
        alpha_M = state.belief.alpha_N + counted.passes
        beta_M = state.belief.beta_N + counted.fails
        return State(Belief(*carry(alpha_M, beta_M, least_M, taught_M, 0.0)), worn_M)


def fit_model(
    blocks: Sequence[Block],
    domain_N: Ints,
    domain_count: int,
    features_NK: Reals | None = None,
) -> Model:
    """Dynamics first, from prompts that were visited again; then the prior, from what the
    evidence is worth today. Of more than 8,192 visited prompts an even sample is used."""
    visited = np.zeros(len(domain_N), dtype=bool)
    for block in blocks:
        visited |= block.attempts_N > 0
    visited_M = np.flatnonzero(visited)
    sample_S = visited_M[even_sample(len(visited_M), _SAMPLE_PROMPTS)]
    seen = gather(blocks, sample_S)
    squares_S, grain = gather_squares(blocks, sample_S), 1.0
    if squares_S is not None:
        grain = fit_grain(seen.passes.sum(axis=0), squares_S, seen.attempts.sum(axis=0))
    seen = seen.over(grain)
    mid_W = np.array([block.mid_step for block in blocks])
    domain_S = domain_N[sample_S].astype(np.intp)
    # What they are compared with in the first place; the features would change it little.
    passes_S = seen.passes.sum(axis=0)
    fails_S = seen.attempts.sum(axis=0) - passes_S
    before = fit_prior(passes_S, fails_S, domain_S, domain_count)
    start = before.belief_at(domain_S, None)
    dynamics = fit_dynamics(seen, mid_W, domain_S, start, domain_count)
    weightless = Prior(np.zeros(domain_count), np.zeros(0), np.full(domain_count, _NOTHING_KNOWN))
    settled = Model(weightless, dynamics).settle(seen, mid_W, domain_S, None)
    counts = settled.belief.alpha_N, settled.belief.beta_N
    features_SK = None if features_NK is None else features_NK[sample_S].astype(np.float64)
    prior = fit_prior(*counts, domain_S, domain_count, features_SK)
    return Model(prior, dynamics, grain)
