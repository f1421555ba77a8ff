"""What a verifier says of one attempt."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

OUT_OF_MEMORY = 86
"""A process' exit code after a MemoryError: what else is broken then, nobody knows."""


@dataclass(frozen=True)
class Verdict:
    """`score` in [0, 1]; None: the verifier failed, which says nothing of the attempt."""

    score: float | None
    because: str = ""
    """One line, why the score is None; never what the model wrote."""


class ScoreError(Exception):
    """What a verifier answered is no score."""


def score_of(answer: object) -> float:
    """The answer as a score, clipped to [0, 1].

    Raises:
        ScoreError: it is no number, or not finite.
    """
    if not isinstance(answer, numbers.Real):
        raise ScoreError(f"answered {type(answer).__qualname__}: must be a number")
    score = float(answer)
    if not math.isfinite(score):
        raise ScoreError(f"answered {score}: must be finite")
    return min(max(score, 0.0), 1.0)
