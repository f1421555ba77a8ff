"""What a look at the store finds."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

SHOWN_PER_KIND = 20
"""Of each kind and run; a damaged store can have a million of one."""

_PLAIN = re.compile(rb"[!#-&(-\[\]-_a-~]+")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    is_error: bool
    """Whether something is amiss; else something could be lost, though nothing is."""
    kind: str
    run_id: str
    """"" for the store itself."""
    problem: str
    remedy: str
    """What is in backticks is a command for the store."""


@dataclass
class Findings:
    """Collects what is wrong with one run, or with the store itself."""

    run_id: str = ""
    found: list[Finding] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)

    def error(self, kind: str, problem: str, remedy: str) -> None:
        """The store holds something that it must not, or lacks something that it must hold."""
        self._add(True, kind, problem, remedy)

    def warning(self, kind: str, problem: str, remedy: str) -> None:
        """What was acknowledged could be lost, though nothing is."""
        self._add(False, kind, problem, remedy)

    def take(self, others: Findings) -> None:
        """What was found of a part."""
        for found in others.found:
            self._add(found.is_error, found.kind, found.problem, found.remedy)

    def _add(self, is_error: bool, kind: str, problem: str, remedy: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= SHOWN_PER_KIND:
            self.found.append(Finding(is_error, kind, self.run_id, problem, remedy))
        elif self._counts[kind] == SHOWN_PER_KIND + 1:
            more = f"there are more of the kind {kind} than the {SHOWN_PER_KIND} shown"
            self.found.append(
                Finding(is_error, kind, self.run_id, more, "mend these first, then look again")
            )


def shown(key: str | bytes) -> str:
    """A key as redis-cli and valkey-cli take it."""
    raw = key.encode() if isinstance(key, str) else key
    if _PLAIN.fullmatch(raw):
        return raw.decode()
    return '"' + "".join(_escaped(byte) for byte in raw) + '"'


def _escaped(byte: int) -> str:
    plain = 0x20 <= byte < 0x7F and chr(byte) not in '"\\`'
    return chr(byte) if plain else f"\\x{byte:02x}"
