"""How pass rates move while nobody looks, and what that leaves of old evidence.

In logits a pass rate is taken for a random walk with a trend that its domain shares:

    logit p_i(t + dt) = logit p_i(t) + drift_d dt + N(0, diffusion dt)

and training on a prompt's own mixed groups moves it besides. All is learned from the ledger:
whenever a prompt is visited again, what was expected of it is compared with what came.
Axes: S sampled prompts, K of them visited again, Q candidate diffusions, W blocks, D domains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats, Ints
from curriculum.belief import Belief
from curriculum.evidence import Evidence

# Variance of a logit per policy step. A real GRPO trace (1,209 prompts, 500 steps) has .0013.
_START_DIFFUSION = 1.3e-3
_DIFFUSIONS = _START_DIFFUSION * 3.0 ** np.arange(-4.0, 5.0)
_TRUST_IN_START = 0.5  # log-likelihood lost per square of log 3 away from the start
_LEAST_RATE = 0.002
MOST_SHIFT = 4.0  # logits: from a pass rate of 1/2 to .98
# The trend of training changes: a block counts a tenth less for each block after it.
_MEMORY = 0.9
# Prior precision of a drift, in (logits per step)**-2: its sd in the same trace is about .01, and
# domains differ among themselves about half as much.
_POOL_PRECISION, _DOMAIN_PRECISION = 1e4, 4e4
# A half-passing group of 8 is a lesson of 4. No gain is assumed until some hundred prompts show it,
# for what is believed in error of prompts visited once looks much like one.
_GAIN_PRECISION, _MOST_GAIN = 1e4, 0.25


@dataclass(frozen=True)
class Dynamics:
    """The motion of pass rates over the blocks of a ledger.

    Attributes:
        diffusion: variance of a logit per policy step.
        drift_WD: logits per policy step on the way to each block; the last row is from then on.
        gain: logits that a prompt itself gains by a `lesson` of 1.
    """

    diffusion: float
    drift_WD: Floats
    gain: float

    @property
    def pace(self) -> float:
        """How far logits move per step, to a real GRPO trace's .036."""
        return math.sqrt(self.diffusion / _START_DIFFUSION)

    def extended(self, block_count: int) -> Dynamics:
        """The same for a ledger with more blocks: the last trend goes on."""
        missing = block_count + 1 - len(self.drift_WD)
        rows = np.repeat(self.drift_WD[-1:], max(missing, 0), axis=0)
        drift_WD = np.concatenate([self.drift_WD, rows])[: block_count + 1]
        return Dynamics(self.diffusion, drift_WD, self.gain)


def shifted(drift: Floats, gap: Floats | float) -> Floats:
    """Logits that a drift moves within a gap. Beyond the limit a trend is no longer to be trusted,
    and odds would overflow."""
    shift: Floats = np.clip(drift * gap, -MOST_SHIFT, MOST_SHIFT)
    return shift


def bounded(alpha: Floats, beta: Floats, least_total: Floats) -> tuple[Floats, Floats]:
    """A beta belief of which evidence says nothing beyond .002 and .998.

    A beta prior with half of its mass at 0 takes a prompt that failed 16 times for one with a logit
    of -10 or less, from where no trend would ever lead back. Language models' are hardly ever
    further out than -6. What is believed without evidence, a total of `least_total`, stays.
    """
    least = _LEAST_RATE * np.maximum(alpha + beta - least_total, 0.0)
    return np.maximum(alpha, least), np.maximum(beta, least)


def carry(
    alpha: Floats,
    beta: Floats,
    least_total: Floats | float,
    odds: Floats | float,
    variance: Floats | float,
) -> tuple[Floats, Floats]:
    """A beta belief after its logit moved by ``log odds`` and spread by `variance`.

    The variance of ``logit p`` under Beta(a, b) is about ``1 / I`` with ``I = a b / (a + b)``, so
    the total shrinks to ``(a + b) / (1 + variance I)``, though not below `least_total`. Near 0 and
    1 the information about the logit is small and little is lost: a prompt that failed 64 times
    is not taken for an open question after a week. Only sums, products and quotients: a
    prompt gets the same bits whether it is computed alone or with the pool.
    """
    total = alpha + beta
    kept = alpha * beta
    kept *= variance
    kept /= total
    kept += 1.0
    np.divide(total, kept, out=kept)
    np.maximum(kept, least_total, out=kept)
    moved = alpha * odds
    kept /= moved + beta  # and no difference, which may become 0
    moved *= kept
    kept *= beta
    return moved, kept


def lesson(evidence: Evidence) -> Floats:
    """What training on a block's groups taught their prompt, in units of `Dynamics.gain`.

    ``sqrt(S F)``: the standard deviation of the rewards, for each attempt that was trained on. 0 if
    all are equal.
    """
    share = evidence.trained / np.maximum(evidence.attempts, 1e-9)
    taught: Floats = np.sqrt(evidence.passes * evidence.fails) * share
    return taught


def fit_dynamics(
    evidence: Evidence, mid_W: Floats, domain_S: Ints, start: Belief, domain_count: int
) -> Dynamics:
    """Diffusion, drifts and gain from how well each block is foretold by those before it.

    Drifts and gain are recursive least squares on what must have moved since the evidence that a
    forecast rests on, ``moved + (rate - expected) / slope``: what was assumed, and what this left
    unexplained, with ``slope = expected (1 - expected)``. It is explained by the steps and the
    lessons since. Domains are shrunk to the pool. The diffusion is the best of a grid by the
    Gaussian log score of ``rate - expected`` under the beta-binomial variance,
    refined by a parabola.
    """
    least_S = start.alpha_N + start.beta_N
    alpha_QS = np.repeat(start.alpha_N[None, :], len(_DIFFUSIONS), axis=0)
    beta_QS = np.repeat(start.beta_N[None, :], len(_DIFFUSIONS), axis=0)
    known_S, since = np.zeros(len(least_S), dtype=bool), _Since(alpha_QS.shape)
    score_Q = -_TRUST_IN_START * (np.log(_DIFFUSIONS / _START_DIFFUSION) / np.log(3.0)) ** 2
    trend = _Trend(len(_DIFFUSIONS), domain_count)
    drifts_WQD = [trend.drift_QD]
    before = mid_W[0] if len(mid_W) else 0.0
    for of_block, mid in zip(evidence.rows(), mid_W, strict=True):
        passes_S, attempts_S = of_block.passes, of_block.attempts
        gap, before = float(mid - before), float(mid)
        drifts_WQD.append(trend.drift_QD)
        shift_QS = np.where(known_S, shifted(trend.drift_QD, gap)[:, domain_S], 0.0)
        variance_Q1 = (_DIFFUSIONS * gap)[:, None]
        alpha_QS, beta_QS = bounded(alpha_QS, beta_QS, least_S)
        alpha_QS, beta_QS = carry(alpha_QS, beta_QS, least_S, np.exp(shift_QS), variance_Q1)
        since.wait(gap * known_S, shift_QS)
        again_K = np.flatnonzero(known_S & (attempts_S > 0.0))
        if len(again_K) and gap > 0.0:
            expected = _Expected.of(alpha_QS[:, again_K], beta_QS[:, again_K], attempts_S[again_K])
            error_QK = passes_S[again_K] / attempts_S[again_K] - expected.mean_QK
            score_Q += expected.log_score(error_QK)
            trend.observe(expected, error_QK, since.of(again_K), domain_S[again_K])
        new_S = lesson(of_block)
        odds_QS = 1.0 + trend.gain_Q[:, None] * new_S
        alpha_QS, beta_QS = alpha_QS + passes_S, beta_QS + of_block.fails
        since.learn(attempts_S / (alpha_QS + beta_QS), new_S, odds_QS)
        alpha_QS, beta_QS = carry(alpha_QS, beta_QS, 0.0, odds_QS, 0.0)
        known_S |= attempts_S > 0.0
    drift_WQD = np.stack([*drifts_WQD[1:], trend.drift_QD])
    best, diffusion = _peak(score_Q)
    return Dynamics(diffusion, drift_WQD[:, best], float(trend.gain_Q[best]))


@dataclass(frozen=True)
class _Expected:
    """Rates foretold, and the variance of what comes around them."""

    mean_QK: Floats
    variance_QK: Floats

    @staticmethod
    def of(alpha_QK: Floats, beta_QK: Floats, attempts_K: Floats) -> _Expected:
        total_QK = alpha_QK + beta_QK
        mean_QK = alpha_QK / total_QK
        spread_QK = mean_QK * (1.0 - mean_QK) / attempts_K
        variance_QK = spread_QK * (total_QK + attempts_K) / (total_QK + 1.0)
        return _Expected(mean_QK, variance_QK + 1e-6)

    def log_score(self, error_QK: Floats) -> Floats:
        scored: Floats = -0.5 * (np.log(self.variance_QK) + error_QK**2 / self.variance_QK).sum(1)
        return scored


class _Since:
    """What happened since the attempts that beliefs rest on, on average over these; (Q, S) each.

    Attributes:
        steps_QS: policy steps.
        taught_QS: lessons.
        moved_QS: logits that the beliefs were moved meanwhile.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.steps_QS, self.taught_QS, self.moved_QS = (np.zeros(shape) for _ in range(3))

    def wait(self, gap_S: Floats, shift_QS: Floats) -> None:
        """Time passes, as far as there is evidence."""
        self.steps_QS += gap_S
        self.moved_QS += shift_QS

    def learn(self, new_QS: Floats, taught_S: Floats, odds_QS: Floats) -> None:
        """`new_QS` of the evidence is of now; all of it is moved by the odds."""
        old_QS = 1.0 - new_QS
        self.steps_QS *= old_QS
        self.taught_QS *= old_QS
        self.taught_QS += taught_S
        self.moved_QS *= old_QS
        self.moved_QS += np.log(odds_QS)

    def of(self, indices_K: Ints) -> tuple[Floats, Floats, Floats]:
        """Steps, lessons and logits of some prompts, (Q, K) each."""
        columns = (self.steps_QS, self.taught_QS, self.moved_QS)
        steps_QK, taught_QK, moved_QK = (values_QS[:, indices_K] for values_QS in columns)
        return steps_QK, taught_QK, moved_QK


class _Trend:
    """Recursive least squares for the drifts and the gain, one for each diffusion.

    The normal equations have a diagonal for the domains and one row for the gain they share.
    """

    def __init__(self, count: int, domain_count: int) -> None:
        self.drift_QD = np.zeros((count, domain_count))
        self.gain_Q = np.zeros(count)
        self._drift_QD = np.zeros((count, domain_count))
        self._both_QD = np.zeros((count, domain_count))
        self._gain_Q = np.zeros(count)
        self._toward_drift_QD = np.zeros((count, domain_count))
        self._toward_gain_Q = np.zeros(count)

    def observe(
        self,
        expected: _Expected,
        error_QK: Floats,
        since: tuple[Floats, Floats, Floats],
        domain_K: Ints,
    ) -> None:
        """Take in what was expected of prompts that were visited again and what came."""
        steps_QK, taught_QK, moved_QK = since
        slope_QK = expected.mean_QK * (1.0 - expected.mean_QK)
        pull_QK = slope_QK / expected.variance_QK * (error_QK + slope_QK * moved_QK)
        weight_QK = slope_QK * slope_QK / expected.variance_QK
        count = self.drift_QD.shape[1]
        for total, new in (
            (self._drift_QD, _per_domain(weight_QK * steps_QK**2, domain_K, count)),
            (self._both_QD, _per_domain(weight_QK * steps_QK * taught_QK, domain_K, count)),
            (self._gain_Q, (weight_QK * taught_QK**2).sum(axis=1)),
            (self._toward_drift_QD, _per_domain(pull_QK * steps_QK, domain_K, count)),
            (self._toward_gain_Q, (pull_QK * taught_QK).sum(axis=1)),
        ):
            total *= _MEMORY
            total += new
        self._solve()

    def _solve(self) -> None:
        """Pool first: one drift for all and the gain; then each domain's drift around it."""
        drift_Q, both_Q = self._drift_QD.sum(axis=1) + _POOL_PRECISION, self._both_QD.sum(axis=1)
        gain_Q = self._gain_Q + _GAIN_PRECISION
        toward_drift_Q = self._toward_drift_QD.sum(axis=1)
        determinant_Q = drift_Q * gain_Q - both_Q * both_Q
        gain_Q = (drift_Q * self._toward_gain_Q - both_Q * toward_drift_Q) / determinant_Q
        self.gain_Q = np.clip(gain_Q, 0.0, _MOST_GAIN)
        pool_Q = (toward_drift_Q - both_Q * self.gain_Q) / drift_Q
        own_QD = self._toward_drift_QD - self._both_QD * self.gain_Q[:, None]
        self.drift_QD = (own_QD + _DOMAIN_PRECISION * pool_Q[:, None]) / (
            self._drift_QD + _DOMAIN_PRECISION
        )


def _per_domain(values_QK: Floats, domain_K: Ints, domain_count: int) -> Floats:
    return np.stack([np.bincount(domain_K, row, domain_count) for row in values_QK])


def _peak(score_Q: Floats) -> tuple[int, float]:
    """The best diffusion of the grid, and the top of the parabola through it and its neighbours."""
    best = int(np.argmax(score_Q))
    if best in (0, len(score_Q) - 1):
        return best, float(_DIFFUSIONS[best])
    below, top, above = score_Q[best - 1 : best + 2]
    offset = 0.5 * (below - above) / (below - 2.0 * top + above)
    return best, float(_DIFFUSIONS[best] * 3.0**offset)
