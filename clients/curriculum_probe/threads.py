"""Calls that block, for the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(call: Callable[[], _T]) -> _T:
    """The call's result, from a thread of its own.

    Unlike the loop's executor this keeps nobody from leaving: when nobody waits for the result any
    more, the process may end while the thread still waits for the network.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # it is what the call returned

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # the boundary: it is raised where the result is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="call", daemon=True).start()
    return await future
