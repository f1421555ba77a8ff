"""How many attempts are with the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Gate:
    """Lets prompts to the engine, in order, for as long as it has room for an attempt.

    A prompt enters with all its attempts, so the last one that is let in may exceed the room by
    some: the engine is never less than full while anyone waits.
    """

    def __init__(self, room: Callable[[], int], on_change: Callable[[], None]) -> None:
        self._room, self._on_change = room, on_change
        self._inside_count = 0
        self._waiting: deque[tuple[asyncio.Future[bool], int]] = deque()
        self._waiting_count = 0
        self._closed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def attempt_count(self) -> int:
        """Attempts that are with the engine or wait for it."""
        return self._inside_count + self._waiting_count

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    async def enter(self, attempt_count: int) -> bool:
        """Wait for room. False: the gate is closed, nothing may be sampled any more."""
        if self.is_closed:
            return False
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, attempt_count))
        self._waiting_count += attempt_count
        self._idle.clear()
        self._admit()
        self._changed()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.result():
                self.leave(attempt_count)
            elif (future, attempt_count) in self._waiting:
                self._waiting.remove((future, attempt_count))
                self._waiting_count -= attempt_count
                self._changed()
            raise

    def leave(self, attempt_count: int) -> None:
        self._inside_count -= attempt_count
        self._admit()
        self._changed()

    def close(self) -> None:
        """Send away who waits and who comes."""
        self._closed.set()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(False)
        self._waiting_count = 0
        self._changed()

    async def closed(self) -> None:
        """Wait until it is."""
        await self._closed.wait()

    async def idle(self) -> None:
        """Wait until nothing is with the engine and nothing waits for it."""
        await self._idle.wait()

    def _admit(self) -> None:
        while self._waiting and self._inside_count < self._room():
            future, attempt_count = self._waiting.popleft()
            self._waiting_count -= attempt_count
            if not future.done():
                self._inside_count += attempt_count
                future.set_result(True)

    def _changed(self) -> None:
        if self.attempt_count == 0:
            self._idle.set()
        self._on_change()
