"""Calls as generators: the logic yields what it wants done, a driver does it.

A flow yields a `Call` and is sent the response, or is thrown one of our errors; it yields a
`Sleep` and is sent None. It never touches a socket, so the blocking and the asyncio client share
every line but their drivers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from curriculum_api.status import AWAY, delays, pause_s


@dataclass(frozen=True)
class Call:
    """One RPC of TrainerService."""

    method: str
    request: Message
    timeout_s: float


@dataclass(frozen=True)
class Sleep:
    """A pause."""

    duration_s: float


PATIENCE = 3
"""Attempts that fail without a word, as they do while a service restarts."""

_log = logging.getLogger("curriculum_client")

T = TypeVar("T")
Flow = Generator[Call | Sleep, Any, T]


def retried(call: Call, retry_s: float) -> Flow[Any]:
    """Make a call, and make it again while the service is away, for up to `retry_s`."""
    started_s = time.monotonic()
    for attempt, delay_s in enumerate(delays(), start=1):
        try:
            return (yield call)
        except AWAY as error:
            delay_s = pause_s(error, delay_s)
            elapsed_s = time.monotonic() - started_s
            if elapsed_s + delay_s > retry_s:
                error.add_note(f"{call.method}: attempts={attempt} elapsed_s={elapsed_s:.1f}")
                raise
            if attempt == PATIENCE:
                _log.warning(
                    "service away method=%s retry_s=%.0f because=%s", call.method, retry_s, error
                )
        yield Sleep(delay_s)
    raise AssertionError("delays never end")
