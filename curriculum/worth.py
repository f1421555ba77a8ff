"""What a group is worth: the chance that it is mixed now, and what it would teach about its prompt.

Both depend on the belief Beta(a, b) alone, so they are read from tables over (log a, log b).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import lgamma

import numpy as np

from curriculum.arrays import Bools, Floats, Ints
from curriculum.belief import Belief
from curriculum.mixed import mixed_probability

_NODES = 64
_HIGH = 2e3
_LOG_LOW, _LOG_HIGH = np.log(0.01), np.log(_HIGH)
_STEP = (_LOG_HIGH - _LOG_LOW) / (_NODES - 1)
_MOST_OUTCOMES = 16  # a larger group teaches hardly more about where its prompt stands
_FIRST_LOOK = 8.0  # how much longer what a first look tells is of use
_log_gamma = np.frompyfunc(lgamma, 1, 1)


@dataclass(frozen=True)
class Worth:
    """``worth = mixed + h gain`` at the nodes, to be read for any beliefs.

    The knowledge gradient: ``gain = E[max(mixed', bar)] - max(mixed, bar)``, where mixed' is the
    chance of a mixed group after one more group came, and the bar is what the last prompt of a
    batch offers. What cannot lift a prompt over the bar, or sink it below, is worth nothing. The
    horizon h is `optimism`, and eight times that for a prompt that was never sampled: a first look
    tells what kind of prompt it is, which lasts; later ones tell where it has moved.

    Source: Frazier, Powell and Dayanik (2008), SIAM J. Control Optim. 47:2410-2439.
    Differs: the value of a prompt is its chance of a mixed group, the best alternative is the
    margin of a batch, and first looks have a horizon of their own.

    Attributes:
        known: at the nodes, for prompts that were sampled before.
        new: for those that never were.
    """

    known: Floats
    new: Floats

    @staticmethod
    def over(bar: float, group_size: int, optimism: float) -> Worth:
        """The tables for a bar in [0, 1]."""
        tables = _tables(group_size)
        after = (tables.chance_K * np.maximum(tables.mixed_after_K, bar)).sum(axis=0)
        gain = optimism * np.maximum(after - np.maximum(tables.mixed, bar), 0.0)
        return Worth(tables.mixed + gain, tables.mixed + _FIRST_LOOK * gain)

    def at(self, belief: Belief, is_new_N: Bools) -> Floats:
        """The worth of N beliefs."""
        worth_N = _read(self.known, belief)
        if is_new_N.any():
            of_new = Belief(belief.alpha_N[is_new_N], belief.beta_N[is_new_N])
            worth_N[is_new_N] = _read(self.new, of_new)
        return worth_N


def expected_mixed(belief: Belief, group_size: int) -> Floats:
    """`mixed_probability` from the table; absolute error below .004."""
    return _read(_tables(group_size).mixed, belief)


@dataclass(frozen=True)
class _Tables:
    mixed: Floats
    chance_K: Floats
    mixed_after_K: Floats


@lru_cache(maxsize=8)
def _tables(group_size: int) -> _Tables:
    nodes = np.exp(np.linspace(_LOG_LOW, _LOG_HIGH, _NODES))
    alpha, beta = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
    seen = min(group_size, _MOST_OUTCOMES)
    chances, after = [], []
    for passes in range(seen + 1):
        choose = lgamma(seen + 1) - lgamma(passes + 1) - lgamma(seen - passes + 1)
        chances.append(np.exp(choose + _log_ratio(alpha, beta, passes, seen - passes)))
        after.append(mixed_probability(Belief(alpha + passes, beta + (seen - passes)), group_size))
    return _Tables(
        mixed_probability(Belief(alpha, beta), group_size), np.stack(chances), np.stack(after)
    )


def _log_ratio(alpha: Floats, beta: Floats, passes: int, fails: int) -> Floats:
    """``log B(a + passes, b + fails) - log B(a, b)``"""
    total = alpha + beta
    up = _log_gamma(alpha + passes) + _log_gamma(beta + fails) - _log_gamma(total + passes + fails)
    ratio = up - (_log_gamma(alpha) + _log_gamma(beta) - _log_gamma(total))
    return np.asarray(ratio, dtype=np.float64)


def _read(table: Floats, belief: Belief) -> Floats:
    # Together, so that a belief beyond the table keeps its mean.
    fit_N = np.minimum(_HIGH / np.maximum(belief.alpha_N, belief.beta_N), 1.0)
    row, in_row = _locate(belief.alpha_N * fit_N)
    column, in_column = _locate(belief.beta_N * fit_N)
    node = row * _NODES + column
    above, below = table.take(node), table.take(node + _NODES)
    above += in_column * (table.take(node + 1) - above)
    below += in_column * (table.take(node + _NODES + 1) - below)
    below -= above
    below *= in_row
    above += below
    return above


def _locate(parameter: Floats) -> tuple[Ints, Floats]:
    """The node below, and how far on the way to the next, in [0, 1]."""
    position = np.log(parameter)
    position -= _LOG_LOW
    position /= _STEP
    np.clip(position, 0.0, _NODES - 1.000001, out=position)
    node = position.astype(np.intp)
    position -= node
    return node, position
