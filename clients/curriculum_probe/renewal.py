"""Keeps the leases of all batches that are in hand."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial

from curriculum_api.v1 import batch_pb2
from curriculum_probe.service import Service
from curriculum_probe.threads import in_thread

MIN_RENEWAL_S = 0.2
MAX_RENEWAL_S = 20.0
"""Between renewals, a third of the time to live; bounded, for the server's clock is another one."""


class _Held:
    def __init__(self, batch: batch_pb2.Batch) -> None:
        left_s = batch.lease_expire_time.seconds - time.time()
        self.batch = batch
        self.interval_s = min(max(left_s / 3, MIN_RENEWAL_S), MAX_RENEWAL_S)
        self.due_s = time.monotonic() + self.interval_s


class Renewals:
    """Renews who is held, for as long as `run` runs."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._held: dict[str, _Held] = {}
        self._changed = asyncio.Event()

    def hold(self, batch: batch_pb2.Batch) -> None:
        self._held[batch.batch_id] = _Held(batch)
        self._changed.set()

    def drop(self, batch: batch_pb2.Batch) -> None:
        self._held.pop(batch.batch_id, None)

    async def run(self) -> None:
        """Renew without end."""
        while True:
            self._changed.clear()
            due_s = min((held.due_s for held in self._held.values()), default=math.inf)
            left_s = None if due_s == math.inf else max(due_s - time.monotonic(), 0)
            try:
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
            except TimeoutError:
                await self._renew()

    async def _renew(self) -> None:
        now_s = time.monotonic()
        due = [held for held in self._held.values() if held.due_s <= now_s]
        for held in due:
            held.due_s = now_s + held.interval_s
        # At once: behind a call that hangs the other leases would run out.
        calls = [in_thread(partial(self._service.renew, held.batch)) for held in due]
        await asyncio.gather(*calls)
