"""Numbers and foreign text as shown."""

from __future__ import annotations

import re

from curriculum_api.v1.run_pb2 import Run

NOTHING = "–"

# A prompt may hold escape sequences, and a terminal would obey them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def percent(value: float | None) -> str:
    """A share in [0, 1]; what is not quite none or all does not look so."""
    if value is None:
        return NOTHING
    if 0 < value <= 0.005:
        return "<1%"
    if 0.995 <= value < 1:
        return ">99%"
    return f"{value:.0%}"


def short(count: int) -> str:
    """At most five characters."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10 * size or (count >= size and size > 10**3):
            value = count / size
            return f"{value:.1f}{unit}" if value < 99.95 else f"{value:.0f}{unit}"
    return f"{count:,}"


def steps(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def created(run: Run) -> str:
    if not run.HasField("create_time"):
        return NOTHING
    return f"{run.create_time.ToDatetime():%Y-%m-%d %H:%M} UTC"
