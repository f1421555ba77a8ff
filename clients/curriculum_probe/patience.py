"""Calls again while something is away, for a bounded time, and says so once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from curriculum_api.status import delays, pause_s

_T = TypeVar("_T")

STOPPING_LIMIT_S = 5.0
"""Whoever stops a worker waits for it, and kills it after a while."""

logger = logging.getLogger(__name__)


class Patience:
    """How long to wait for what is away. Shared by all threads of a worker."""

    def __init__(self, limit_s: float, stop: threading.Event) -> None:
        self._limit_s, self._stop = limit_s, stop
        self._away: set[str] = set()

    def repeat(self, call: Callable[[], _T], away: tuple[type[Exception], ...], what: str) -> _T:
        """The call's result; raises its last error of `away` when patience ends."""
        started_s, pauses = time.monotonic(), delays()
        while True:
            try:
                result = call()
            except away as error:
                delay_s = pause_s(error, next(pauses))
                if time.monotonic() + delay_s > started_s + self._patience_s():
                    raise
                if what not in self._away:
                    self._away.add(what)
                    logger.warning("%s went away because=%s", what, error)
            else:
                if what in self._away:
                    self._away.discard(what)
                    logger.info("%s came back", what)
                return result
            # Being stopped ends the pause at hand; the few that may follow are short.
            pause = time.sleep if self._stop.is_set() else self._stop.wait
            pause(delay_s)

    def _patience_s(self) -> float:
        return min(self._limit_s, STOPPING_LIMIT_S) if self._stop.is_set() else self._limit_s
