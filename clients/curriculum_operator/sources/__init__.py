"""Where prompts come from. Every source can be read more than once, record by record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Record:
    """One record as it was found; `problem` says why it could not be read at all."""

    number: int
    value: Any = None
    problem: str | None = None


class Source(Protocol):
    """Records in a fixed order."""

    @property
    def unit(self) -> str:
        """What one record is called in messages: "line" or "row"."""

    def records(self) -> Iterator[Record]:
        """From the first record, each time."""
