"""Batches of attempts for an engine that generates a batch at a time.

One thread generates. While it does, prompts come in, and the next batch is put together of those
that have waited longest and of others about as long as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from curriculum_probe.engines import Completion, EngineError, RefusedError

_T = TypeVar("_T")

LINGER_S = 0.03
"""After a pause, the time in which a first batch gathers, if it is not full before."""
MAX_LENGTH_RATIO = 2.0
MIN_LENGTH_TOKENS = 64
"""Prompts share a batch if, with the tokens that may be added to each, none is over twice as long
as the first one, or if both are short. What a shorter one lacks is padding; what a batch lacks of
its attempts costs as much as an attempt, for its steps take almost as long with fewer."""


@dataclass(eq=False)
class _Request:
    """A prompt whose attempts are sampled in one batch or in several."""

    token_ids: list[int]
    left_count: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Completion]]
    completions: list[Completion] = field(default_factory=list)


Share = tuple[_Request, int]
"""A request and how many of its attempts are in a batch."""


class Batcher:
    """Hands batches to `generate`, which is given prompts and how many attempts each has.

    Args:
        generate: gives one list of completions per prompt. It runs in the batcher's thread.
        row_count: attempts in a batch, at most.
        new_token_count: tokens that an attempt may have beyond its prompt.
        out_of_memory: what `generate` raises where a smaller batch may do.
    """

    def __init__(
        self,
        generate: Callable[[list[list[int]], list[int]], list[list[Completion]]],
        *,
        row_count: int,
        new_token_count: int,
        out_of_memory: type[Exception],
        on_halved: Callable[[int], None] = lambda _token_count: None,
    ) -> None:
        self._generate, self._on_halved = generate, on_halved
        self._row_count, self._new_token_count = row_count, new_token_count
        self._out_of_memory = out_of_memory
        self._token_budget: int | None = None
        self._pending: list[_Request] = []
        self._calls: list[Callable[[], None]] = []
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    async def sample(self, token_ids: list[int], attempt_count: int) -> list[Completion]:
        """As many completions of a prompt.

        Raises:
            RefusedError: it alone takes more memory than there is.
            EngineError: generating failed.
        """
        loop = asyncio.get_running_loop()
        request = _Request(token_ids, attempt_count, loop, loop.create_future())
        with self._changed:
            self._pending.append(request)
            self._changed.notify()
        return await request.future

    async def between(self, call: Callable[[], _T]) -> _T:
        """The call's result, made in the batcher's thread while no batch is generated."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def run() -> None:
            try:
                result = call()
            except Exception as error:  # the boundary: it is raised where the result is awaited
                _settle(loop, future, error)
            else:
                _settle(loop, future, result)

        with self._changed:
            self._calls.append(run)
            self._changed.notify()
        return await future

    def close(self) -> None:
        """Generate no more; who still waits is never answered. Waits for the batch at hand."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not (self._pending or self._calls or self._is_closed):
                    self._changed.wait_for(lambda: self._pending or self._calls or self._is_closed)
                    self._changed.wait_for(self._need_not_gather, LINGER_S)
                if self._is_closed:
                    return
                calls, self._calls = self._calls, []
                self._pending = [each for each in self._pending if not each.future.done()]
                batch = choose(
                    self._pending, self._row_count, self._token_budget, self._new_token_count
                )
            for call in calls:
                call()
            if batch:
                self._work(batch)

    def _need_not_gather(self) -> bool:
        waiting = sum(request.left_count for request in self._pending)
        return bool(self._calls or self._is_closed or waiting >= self._row_count)

    def _work(self, batch: Sequence[Share]) -> None:
        counts = [count for _, count in batch]
        try:
            answers = self._generate([request.token_ids for request, _ in batch], counts)
        except self._out_of_memory as error:
            self._shrink(batch, error)
            return
        except Exception as error:  # the boundary: whatever a model raises
            because = f"generating failed: {type(error).__name__}: {error}"
            for request, _ in batch:
                self._give_up(request, EngineError(because))
            return
        for (request, count), completions in zip(batch, answers, strict=True):
            request.completions += completions
            request.left_count -= count
            if not request.left_count:
                self._finish(request)

    def _shrink(self, batch: Sequence[Share], error: Exception) -> None:
        """Half as many tokens from now on; the batch is still pending and comes again, in parts."""
        row_count = sum(count for _, count in batch)
        width = max(len(request.token_ids) for request, _ in batch) + self._new_token_count
        if row_count == 1:
            [(request, _)] = batch
            message = f"a prompt of {len(request.token_ids)} tokens: {error}"
            self._give_up(request, RefusedError(message))
            return
        self._token_budget = row_count * width // 2
        self._on_halved(self._token_budget)

    def _finish(self, request: _Request) -> None:
        self._drop(request)
        _settle(request.loop, request.future, request.completions)

    def _give_up(self, request: _Request, error: Exception) -> None:
        self._drop(request)
        _settle(request.loop, request.future, error)

    def _drop(self, request: _Request) -> None:
        with self._changed:
            self._pending = [each for each in self._pending if each is not request]


def choose(
    pending: Sequence[_Request], row_count: int, token_budget: int | None, new_token_count: int
) -> list[Share]:
    """The request that waits longest, and others in the order of how near they are in length.

    There are at most `row_count` attempts, and at most `token_budget` tokens where each is as long
    as the longest prompt with `new_token_count` more; but always one attempt.
    """
    if not pending:
        return []
    first = len(pending[0].token_ids)
    near = sorted(
        (each for each in pending if _are_near(first, len(each.token_ids), new_token_count)),
        key=lambda each: abs(len(each.token_ids) - first),
    )
    batch: list[Share] = []
    rows, width = 0, 0
    for request in near:
        width = max(width, len(request.token_ids) + new_token_count)
        room = row_count if token_budget is None else min(row_count, token_budget // width)
        count = min(request.left_count, max(room, 0 if batch else 1) - rows)
        if count <= 0:
            break
        batch.append((request, count))
        rows += count
    return batch


def _are_near(first: int, second: int, new_token_count: int) -> bool:
    longer, shorter = max(first, second), min(first, second)
    most = MAX_LENGTH_RATIO * (shorter + new_token_count) - new_token_count
    return longer <= max(most, MIN_LENGTH_TOKENS)


def _settle(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[_T], value: _T | Exception
) -> None:
    def settle() -> None:
        if future.done():
            return
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)

    with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
        loop.call_soon_threadsafe(settle)
