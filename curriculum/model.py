"""All that is learned from the pool as a whole: the prior, and how pass rates move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from curriculum.arrays import Floats, Ints
from curriculum.belief import Belief
from curriculum.dynamics import Dynamics, carry, fit_dynamics, lesson, shifted
from curriculum.evidence import Block, gather, gather_squares
from curriculum.prior import Prior, fit_prior
from curriculum.spread import fit_grain

# Enough for a standard error of .006 on a mean; more would cost time and change nothing. Spread by
# the golden ratio, which unlike a stride never falls into step with interleaved domains.
_SAMPLE_PROMPTS = 1 << 13
_SPREAD = np.sort(np.arange(_SAMPLE_PROMPTS) * 0.6180339887498949 % 1.0)


@dataclass(frozen=True)
class Model:
    """What a pool's blocks say about every prompt, visited or not."""

    prior: Prior
    dynamics: Dynamics
    grain: float = 1.0
    """Variance of an attempt's objective, to that of a pass with the same mean: 1 where it is 0 or
    1. An attempt tells the more of the mean the smaller it is."""

    def belief(
        self,
        passes_WM: Floats,
        attempts_WM: Floats,
        mid_W: Floats,
        domain_M: Ints,
        features_MK: Floats | None,
        policy_step: float,
    ) -> Belief:
        """Beliefs at a policy step: the prior, carried from block to block, the counts added.

        The prior is of today, so it starts from where the drifts since then bring it here.

        Args:
            passes_WM: passes by block.
            attempts_WM: attempts by block.
            mid_W: the middle of each block, not falling.
            domain_M: in [0, D).
            features_MK: as the prior was fitted with.
            policy_step: of today.
        """
        mean_M = self.prior.mean_at(domain_M, features_MK)
        least_M = self.prior.concentration_D.take(domain_M)
        if not len(mid_W):
            return Belief(least_M * mean_M, least_M * (1.0 - mean_M))
        dynamics = self.dynamics.extended(len(mid_W))
        gap_W = np.maximum(np.diff(np.append(mid_W, policy_step)), 0.0)
        shift_WD = shifted(dynamics.drift_WD[1:], gap_W[:, None])
        back_M = np.exp(-shift_WD.sum(axis=0)).take(domain_M)
        alpha_M, beta_M = carry(least_M * mean_M, least_M * (1.0 - mean_M), least_M, back_M, 0.0)
        for row, gap in enumerate(gap_W.tolist()):
            passes_M = passes_WM[row] / self.grain
            fails_M = attempts_WM[row] / self.grain - passes_M
            alpha_M, beta_M = alpha_M + passes_M, beta_M + fails_M
            odds_M = np.exp(shift_WD[row]).take(domain_M)
            odds_M *= 1.0 + dynamics.gain * lesson(passes_M, fails_M)
            alpha_M, beta_M = carry(alpha_M, beta_M, least_M, odds_M, dynamics.diffusion * gap)
        return Belief(alpha_M, beta_M)


def fit_model(
    blocks: Sequence[Block],
    domain_N: Ints,
    domain_count: int,
    features_NK: npt.NDArray[np.floating[Any]] | None = None,
) -> Model:
    """Dynamics first, from prompts that were visited again; then the prior, from what the
    evidence is worth today. Of more than 8,192 visited prompts an even sample is used."""
    visited = np.zeros(len(domain_N), dtype=bool)
    for block in blocks:
        visited |= block.attempts_N > 0
    sample_S = _even_sample(np.flatnonzero(visited))
    passes_WS, attempts_WS = gather(blocks, sample_S)
    squares_S, grain = gather_squares(blocks, sample_S), 1.0
    if squares_S is not None:
        grain = fit_grain(passes_WS.sum(axis=0), squares_S, attempts_WS.sum(axis=0))
    passes_WS, attempts_WS = passes_WS / grain, attempts_WS / grain
    mid_W = np.array([block.mid_step for block in blocks])
    domain_S = domain_N[sample_S].astype(np.intp)
    # What they are compared with in the first place; the features would change it little.
    before = fit_prior(*_totals(passes_WS, attempts_WS), domain_S, domain_count)
    start = before.belief_at(domain_S, None)
    dynamics = fit_dynamics(passes_WS, attempts_WS, mid_W, domain_S, start, domain_count)
    alpha_S, beta_S = np.full(len(sample_S), 1e-3), np.full(len(sample_S), 1e-3)
    gap_W = np.diff(mid_W, prepend=mid_W[:1])
    for row, gap in enumerate(gap_W.tolist()):
        odds_S = np.exp(shifted(dynamics.drift_WD[row], gap))[domain_S]
        alpha_S, beta_S = carry(alpha_S, beta_S, 0.0, odds_S, dynamics.diffusion * gap)
        fails_S = attempts_WS[row] - passes_WS[row]
        taught_S = 1.0 + dynamics.gain * lesson(passes_WS[row], fails_S)
        alpha_S, beta_S = carry(alpha_S + passes_WS[row], beta_S + fails_S, 0.0, taught_S, 0.0)
    features_SK = None if features_NK is None else features_NK[sample_S].astype(np.float64)
    prior = fit_prior(alpha_S, beta_S, domain_S, domain_count, features_SK)
    return Model(prior, dynamics, grain)


def _totals(passes_WS: Floats, attempts_WS: Floats) -> tuple[Floats, Floats]:
    passes_S = passes_WS.sum(axis=0)
    return passes_S, attempts_WS.sum(axis=0) - passes_S


def _even_sample(indices_M: Ints) -> Ints:
    """At most 8,192 of the indices; always the same ones."""
    if len(indices_M) <= _SAMPLE_PROMPTS:
        return indices_M
    return indices_M[(_SPREAD * len(indices_M)).astype(np.intp)]
