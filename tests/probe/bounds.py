"""How far what is counted may be off what is expected."""

from __future__ import annotations

import math


def most_off(n: int, p: float) -> float:
    """|X - np| of X passes in n attempts, each with the chance p, is at most this, but for a chance
    of e⁻¹² = 6e-6 on each side.

    Bernstein, one side, v = np(1-p): P(X - np ≥ t) ≤ exp(-t² / (2v + 2t/3)). That is e⁻¹² at the
    root of t² = 12 (2v + 2t/3), which is t = 4 + √(16 + 24v).
    """
    return 4 + math.sqrt(16 + 24 * n * p * (1 - p))
