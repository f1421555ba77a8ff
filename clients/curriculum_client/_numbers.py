"""Numbers that name requests: each is used once, and one whose use failed names the same again.

A failed request may have been applied, so its number stays with its content. Were it used for other
content, the service would have to refuse it; and ranks that count along would drift apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

MAX_NUMBERINGS = 2048
"""Four batches whose every attempt is reported alone, or the last 2048 that are reported whole."""

MAX_RETURNED = 64
"""A number that was given back is asked for at once or never."""

Content = tuple[int, ...]

_FORGOTTEN = ""
"""The key under which a state has where new numberings begin."""


class Numbers:
    """Hands out 0, 1, 2, … A number is open from `take` until it was used."""

    __slots__ = ("_returned", "_taken", "next")

    def __init__(self, state: Sequence[int | Sequence[int]] = (0,)) -> None:
        first, *opened = state
        self.next = _integer(first)
        self._returned = dict(map(_entry, opened))
        self._taken: dict[int, Content] = {}

    def take(self, content: Content = ()) -> int:
        """The smallest open number that was taken for this content, else a new one."""
        number = min((n for n, kept in self._returned.items() if kept == content), default=None)
        if number is None:
            number = self.next
            self.next += 1
        self._returned.pop(number, None)
        self._taken[number] = content
        return number

    def settle(self, number: int, *, used: bool) -> None:
        """End a `take`; a number that was not used is handed out again."""
        content = self._taken.pop(number)
        if not used:
            self._returned[number] = content
            if len(self._returned) > MAX_RETURNED:
                del self._returned[next(iter(self._returned))]

    def state(self) -> list[int | list[int]]:
        """The next number, then each open one with its content."""
        opened = sorted({**self._returned, **self._taken}.items())
        return [self.next, *([number, *content] for number, content in opened)]


class Numberings:
    """A bounded number of `Numbers`, by key; the least recently used is forgotten first."""

    def __init__(self, state: Mapping[str, Sequence[int | Sequence[int]]] | None = None) -> None:
        kept = OrderedDict((key, Numbers(each)) for key, each in (state or {}).items())
        self._first = kept.pop(_FORGOTTEN, Numbers()).next
        self._by_key = kept

    def of(self, key: str) -> Numbers:
        """The numbers of a key, new ones if it is unknown."""
        numbers = self._by_key.setdefault(key, Numbers((self._first,)))
        self._by_key.move_to_end(key)
        if len(self._by_key) > MAX_NUMBERINGS:
            _, forgotten = self._by_key.popitem(last=False)
            # No key that comes again may get a number that it had.
            self._first = max(self._first, forgotten.next)
        return numbers

    def state(self) -> dict[str, list[int | list[int]]]:
        """What `__init__` takes."""
        kept = {key: numbers.state() for key, numbers in self._by_key.items()}
        return {**kept, _FORGOTTEN: [self._first]} if self._first else kept


def _entry(entry: int | Sequence[int]) -> tuple[int, Content]:
    if not isinstance(entry, Sequence):
        raise TypeError(f"{entry!r} is not a number with its content")
    number, *content = map(_integer, entry)
    return number, tuple(content)


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value
