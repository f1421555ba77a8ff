"""Work spread over processes, with a line of progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> list[Result]:
    """``[work(item) for item in items]``; with one process, in this one."""
    results: list[Result] = []
    for result in _each(work, items, processes):
        results.append(result)
        print(f"\r{len(results)} of {len(items)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def _each(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[Result]:
    if processes == 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(processes) as workers:
        yield from workers.map(work, items)
