"""Progress: bars on a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 5.0


class Show:
    """Named tasks, each with a count and a note; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._ids: dict[str, TaskID] = {}
        self._lines: dict[str, str] = {}
        self._due_s = time.monotonic() + LINE_EVERY_S

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()
        self._print_line()

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Say how far a task is."""
        if name not in self._ids:
            self._ids[name] = self._bars.add_task(name, total=total, note=note)
        self._bars.update(self._ids[name], completed=done, note=note)
        self._lines[name] = f"{name} {done}/{total} {note}".rstrip()
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + LINE_EVERY_S
            self._print_line()

    def _print_line(self) -> None:
        if not self._console.is_terminal:
            print("   ".join(self._lines.values()), flush=True)
