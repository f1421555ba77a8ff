"""The columns of a window: names, cell types and fixed-point scales.

`reward_excess` and `reward_sq_excess` hold what a reward adds to the plain count of passes: the sum
of (x - pass) and (x² - pass), x being the reward's position in the run's range. Rewards of 0 and 1
add nothing, so runs with a binary verifier neither write nor store these columns.

`objective` and `objective_sq` hold the sums of y and y², y in [0, 1] being an attempt's objective.
Runs whose objective is the pass do not have them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ATTEMPTS = "attempts"
PASSES = "passes"
REWARD_EXCESS = "reward_excess"
REWARD_SQ_EXCESS = "reward_sq_excess"
TOKENS = "tokens"
PROBED = "probed"
"""Of the attempts those of probers, on which nothing was trained."""
REFERENCE_ATTEMPTS = "reference_attempts"
REFERENCE_PASSES = "reference_passes"
"""Of the reference policy, made when the run had gone beyond window 0. They are kept in the window
of their time, with which a rollback drops them, and say nothing of later policies."""
OBJECTIVE = "objective"
OBJECTIVE_SQ = "objective_sq"
SERVED = "served"
"""Not a column but a log of servings: packed pairs of prompt index and policy step."""

SIGNED = frozenset({REWARD_EXCESS, REWARD_SQ_EXCESS})
FIXED_POINT_SCALE = 1 << 14
"""Resolution of rewards, channels and objectives; a u32 cell then holds 262,144 attempts at full
scale."""


def of_reference(name: str) -> str:
    """The column of the reference policy that corresponds to `attempts` or `passes`."""
    return {ATTEMPTS: REFERENCE_ATTEMPTS, PASSES: REFERENCE_PASSES}[name]


def channel(name: str) -> str:
    """The column of a declared channel."""
    return f"ch:{name}"


def cell_dtype(name: str) -> np.dtype[np.signedinteger | np.unsignedinteger]:
    """The packed type of a column's cells in Redis."""
    return np.dtype(">i4") if name in SIGNED else np.dtype(">u4")


def cell_limits(name: str) -> tuple[int, int]:
    """Where a column's cells saturate."""
    return (-(1 << 31), (1 << 31) - 1) if name in SIGNED else (0, (1 << 32) - 1)


def column_names(channels: Sequence[str], *, has_objective: bool = False) -> list[str]:
    """Every key that a window of a run with these channels may have, the log of servings last."""
    counts = [ATTEMPTS, PASSES, REWARD_EXCESS, REWARD_SQ_EXCESS, TOKENS, PROBED]
    reference = [REFERENCE_ATTEMPTS, REFERENCE_PASSES]
    objective = [OBJECTIVE, OBJECTIVE_SQ] if has_objective else []
    return [*counts, *reference, *objective, *map(channel, channels), SERVED]
