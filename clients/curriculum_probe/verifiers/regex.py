"""What a pattern finds last in the completion is the answer.

Without an answer in the payload, a completion is right in which the pattern finds anything.
The payload's `pattern` is one of Python's `re`, with flags written inline: `(?im)^answer: (.*)$`.
What it finds is its `group`, by number or name, or else its first one, or the whole match where it
has none; white space around it does not count. A pattern that backtracks without end is a verifier
error: the pool kills it.
"""

from __future__ import annotations

import re
from collections import deque

from curriculum_probe.verifiers.base import Payload, Scorer, UnverifiableError

MAX_PATTERN_LENGTH = 10_000
"""It is compiled in the worker, before anything is generated."""


def prepare(payload: Payload) -> Scorer:
    pattern = _pattern(payload)
    group = _group(payload, pattern)
    answer = payload.get("answer")
    if answer is not None and (not isinstance(answer, str | int | float) or answer is True):
        raise UnverifiableError("verifier='regex': the payload's answer must be text or a number")
    wanted = None if answer is None else str(answer).strip()

    def score(completion: str, /) -> float:
        found = deque(pattern.finditer(completion), maxlen=1)
        if not found or wanted is None:
            return float(bool(found))
        return float((found[0][group] or "").strip() == wanted)

    return score


def _pattern(payload: Payload) -> re.Pattern[str]:
    given = payload.get("pattern")
    if not isinstance(given, str) or not 0 < len(given) <= MAX_PATTERN_LENGTH:
        raise UnverifiableError(
            "verifier='regex': the payload's pattern must be text of "
            f"1 to {MAX_PATTERN_LENGTH} characters"
        )
    try:
        return re.compile(given)
    except (re.error, RecursionError, OverflowError) as error:
        raise UnverifiableError(f"verifier='regex': the payload's pattern: {error}") from error


def _group(payload: Payload, pattern: re.Pattern[str]) -> int | str:
    group = payload.get("group", min(1, pattern.groups))
    known = group in pattern.groupindex if isinstance(group, str) else group in _numbers(pattern)
    if not known or isinstance(group, bool):
        names = [*map(str, _numbers(pattern)), *pattern.groupindex]
        raise UnverifiableError(
            f"verifier='regex': the payload's group={group!r}: must be one of {', '.join(names)}"
        )
    assert isinstance(group, int | str)
    return group


def _numbers(pattern: re.Pattern[str]) -> range:
    return range(pattern.groups + 1)
