"""How far long work has got, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 5.0
_LOOK_EVERY = 256
"""A bar drawn for every record would cost more than reading it."""

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress(console: Console, title: str, total: int | None, noun: str) -> Iterator[Advance]:
    """Gives the function to call with the number of things newly done."""
    if console.is_terminal:
        with _bar(console, title, total) as advance:
            yield advance
    else:
        yield _lines(console, title, total, noun)


@contextlib.contextmanager
def _bar(console: Console, title: str, total: int | None) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        pending = 0

        def advance(count: int) -> None:
            nonlocal pending
            pending += count
            if pending >= _LOOK_EVERY:
                bar.advance(task, pending)
                pending = 0

        yield advance
        bar.advance(task, pending)


def _lines(console: Console, title: str, total: int | None, noun: str) -> Advance:
    done = 0
    last_s = time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last_s
        done += count
        if time.monotonic() - last_s >= _LINE_EVERY_S:
            last_s = time.monotonic()
            of = f" of {total:,}" if total is not None else ""
            console.print(f"{title}: {done:,}{of} {noun}", highlight=False)

    return advance
