"""Shares by window as shares by step: a window that holds many steps takes as much room as they."""

from __future__ import annotations

from collections.abc import Sequence


def rebinned(
    spans: Sequence[tuple[int, int]], counts: Sequence[tuple[float, float]], most: int
) -> list[float | None]:
    """The share in each of at most `most` equal stretches of steps, None where there is nothing.

    A window's counts are taken to be spread evenly over its steps, so a stretch over several
    windows weighs each by what it counted there.

    Args:
        spans: first and last step of each window, oldest first.
        counts: of each window (part, whole).
    """
    start = spans[0][0]
    step_count = spans[-1][1] + 1 - start
    cells = min(most, step_count)
    # In units of 1/cells of a step, in which every bound is a whole number.
    edges = [((first - start) * cells, (last + 1 - start) * cells) for first, last in spans]
    found: list[float | None] = []
    for low in range(0, cells * step_count, step_count):
        part = whole = 0.0
        for (first, end), count in zip(edges, counts, strict=True):
            common = max(0, min(end, low + step_count) - max(first, low)) / (end - first)
            part, whole = part + common * count[0], whole + common * count[1]
        found.append(part / whole if whole else None)
    return found
