"""math-verify's judgement: whether the completion's last mathematics equals the answer.

The payload's `answer` is LaTeX or plain, in `$…$` or bare. What a completion puts into `\\boxed{}`
comes before anything else that it says: the last one, with those close before it as one set. An
expression that math-verify cannot read or compare is not the answer.

math-verify keeps its own time by SIGALRM, and takes what ran out of it for wrong. Here it has none:
the pool's timeout, from outside, makes it a verifier error, and nobody else's alarm is touched.
"""

from __future__ import annotations

import logging
from decimal import Decimal
from math import isfinite
from typing import Any

from curriculum_probe.verifiers.base import Payload, Scorer, UnverifiableError
from curriculum_probe.verifiers.registry import require

_MARKS = ("$", "\\boxed", "\\(", "\\[")
"""What tells math-verify where LaTeX begins."""


def check(payload: Payload) -> None:
    require("math", "math_verify")
    _answer(payload)


def prepare(payload: Payload) -> Scorer:
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no timeout
    answer = _answer(payload)
    marked = answer if any(mark in answer for mark in _MARKS) else f"${answer}$"
    gold = _parsed(marked) or _parsed(answer)
    if not gold:
        raise UnverifiableError("verifier='math': the payload's answer holds no mathematics")

    def score(completion: str, /) -> float:
        return float(math_verify.verify(gold, _parsed(completion), timeout_seconds=None))

    return score


def _answer(payload: Payload) -> str:
    answer = payload.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool) and isfinite(answer):
        return f"{Decimal(str(answer)):f}"  # 1e-3 would be read as 1 times e, less 3
    if not isinstance(answer, str) or not answer.strip():
        raise UnverifiableError("verifier='math': the payload's answer must be text or a number")
    return answer.strip()


def _parsed(text: str) -> list[Any]:
    import math_verify

    found: list[Any] = math_verify.parse(
        text.replace("\N{MINUS SIGN}", "-"),
        extraction_config=[
            math_verify.LatexExtractionConfig(boxed_match_priority=0),
            math_verify.ExprExtractionConfig(),
        ],
        parsing_timeout=None,
    )
    return found
