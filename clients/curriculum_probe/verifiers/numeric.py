"""The last number of the completion is the last number of the answer, within a tolerance.

The payload's `tolerance` is absolute. Without one it is 1e-6, and 1e-6 of the answer where that is
less: integers must be equal, decimals may be rounded.
"""

from __future__ import annotations

import decimal
import re
from decimal import Decimal

from curriculum_probe.verifiers.base import Payload, Scorer, UnverifiableError

DEFAULT_TOLERANCE = Decimal("1e-6")

# A minus after a digit or a letter is a subtraction or a hyphen; a comma separates thousands.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?"
)
# Exact for any number that is meant, and without traps: what a model writes may overflow.
_ARITHMETIC = decimal.Context(prec=1000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])


def prepare(payload: Payload) -> Scorer:
    given = payload.get("answer")
    answer = last_number(str(given)) if isinstance(given, str | int | float) else None
    if answer is None or not answer.is_finite():
        raise UnverifiableError("verifier='numeric': the payload's answer must hold a number")
    tolerance = _tolerance(payload, answer)

    def score(completion: str, /) -> float:
        found = last_number(completion)
        if found is None:
            return 0.0
        difference = _ARITHMETIC.subtract(found, answer).copy_abs()
        return float(difference.is_finite() and difference <= tolerance)

    return score


def last_number(text: str) -> Decimal | None:
    """The last number that is written in the text."""
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return _ARITHMETIC.create_decimal(found[-1].replace(",", "")) if found else None


def _tolerance(payload: Payload, answer: Decimal) -> Decimal:
    if "tolerance" not in payload:
        return _ARITHMETIC.multiply(DEFAULT_TOLERANCE, min(Decimal(1), answer.copy_abs()))
    given = payload["tolerance"]
    if not isinstance(given, int | float) or not 0 <= given < float("inf"):
        raise UnverifiableError("verifier='numeric': the payload's tolerance must be >= 0")
    return Decimal(given)
