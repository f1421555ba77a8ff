"""What a group is worth: the chance that it is mixed now, and what it would teach about its prompt.

Both depend on the belief Beta(a, b) alone, so they are read from tables over (log a, log b).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from curriculum.arrays import Bools, Floats
from curriculum.belief import Belief
from curriculum.beta import log_beta_binomial
from curriculum.grid import LogGrid
from curriculum.mixed import mixed_probability

_GRID = LogGrid(0.01, 2e3, 64)
_MOST_OUTCOMES = 16  # a larger group teaches hardly more about where its prompt stands
_FIRST_LOOK = 8.0  # how much longer what a first look tells is of use


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
        tables = _tables(group_size, min(group_size, _MOST_OUTCOMES))
        gain = optimism * tables.gain_over(bar)
        return Worth(tables.mixed + gain, tables.mixed + _FIRST_LOOK * gain)

    def at(self, belief: Belief, is_new_N: Bools) -> Floats:
        """The worth of N beliefs."""
        worth_N = _read(self.known, belief)
        if is_new_N.any():
            worth_N[is_new_N] = _read(self.new, belief.take(is_new_N))
        return worth_N


def expected_mixed(belief: Belief, group_size: int) -> Floats:
    """`mixed_probability` from the table; absolute error below .004."""
    return _read(_tables(group_size, min(group_size, _MOST_OUTCOMES)).mixed, belief)


def expected_gain(belief: Belief, bar: float, group_size: int, attempt_count: int) -> Floats:
    """What so many attempts would teach about each prompt; see `Worth`.

    Args:
        belief: N beliefs.
        bar: chance of a mixed group that the alternatives offer, in [0, 1].
        group_size: of the groups that are to be mixed.
        attempt_count: K >= 1; more than 16 tell hardly more.
    """
    tables = _tables(group_size, min(attempt_count, _MOST_OUTCOMES))
    return _read(tables.gain_over(bar), belief)


@dataclass(frozen=True)
class _Tables:
    """At the nodes: the chance of a mixed group now, and by the passes among K attempts."""

    mixed: Floats
    chance_K: Floats
    mixed_after_K: Floats

    def gain_over(self, bar: float) -> Floats:
        after = (self.chance_K * np.maximum(self.mixed_after_K, bar)).sum(axis=0)
        gain: Floats = np.maximum(after - np.maximum(self.mixed, bar), 0.0)
        return gain


@lru_cache(maxsize=16)
def _tables(group_size: int, seen: int) -> _Tables:
    nodes = _GRID.nodes
    alpha, beta = np.repeat(nodes, len(nodes)), np.tile(nodes, len(nodes))
    belief, chances, after = Belief(alpha, beta), [], []
    for passes in range(seen + 1):
        chances.append(np.exp(log_beta_binomial(passes, seen, belief)))
        after.append(mixed_probability(Belief(alpha + passes, beta + (seen - passes)), group_size))
    return _Tables(mixed_probability(belief, group_size), np.stack(chances), np.stack(after))


def _read(table: Floats, belief: Belief) -> Floats:
    # Together, so that a belief beyond the table keeps its mean.
    fit_N = np.minimum(_GRID.high / np.maximum(belief.alpha_N, belief.beta_N), 1.0)
    row, column = _GRID.locate(belief.alpha_N * fit_N), _GRID.locate(belief.beta_N * fit_N)
    return _GRID.read(table, row, column)
