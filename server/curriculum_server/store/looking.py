"""Reads for a look at a run whose state may be anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curriculum_server.store.batches import OpenBatch, decode_open
from curriculum_server.store.connection import Redis, store_errors
from curriculum_server.store.inventory import IMPORT
from curriculum_server.store.keys import RUN_INDEX, RunKeys


@dataclass(frozen=True)
class RawRun:
    """A run's meta hash as it is, how many events its stream holds, and its leases."""

    meta: Mapping[bytes, bytes]
    event_count: int
    leases: Sequence[tuple[bytes, float]]
    """(the batch's key, second at which it expires)."""
    now_s: int

    @property
    def layout(self) -> bytes | None:
        """None for a run that is not there, or not yet, or no more."""
        return self.meta.get(b"layout")

    @property
    def is_importing(self) -> bool:
        return self.layout is None and IMPORT.encode() in self.meta


async def read_raw(redis: Redis, keys: RunKeys) -> RawRun:
    """What there is, if anything, at one moment."""
    with store_errors():
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.meta)
            pipe.xlen(keys.events)
            pipe.zrange(keys.leases, 0, -1, withscores=True)
            pipe.time()
            meta, event_count, leases, now = await pipe.execute()
    return RawRun(meta, int(event_count), leases, int(now[0]))


async def read_meta(redis: Redis, keys: RunKeys) -> RawRun:
    """The meta hash alone."""
    with store_errors():
        meta: Any = await redis.hgetall(keys.meta)
    return RawRun(meta, 0, (), 0)


async def read_batches(redis: Redis, names: Sequence[bytes]) -> list[OpenBatch | None]:
    """Batches by their keys; None for one that is gone."""
    if not names:
        return []
    with store_errors():
        async with redis.pipeline(transaction=True) as pipe:
            for name in names:
                pipe.hmget(name.decode(), ["slots", "expire", "progress"])
            found = await pipe.execute()
    return [decode_open("", values) for values in found]


async def is_listed(redis: Redis, run_id: str) -> bool:
    """Whether the index of runs names the run."""
    with store_errors():
        return await redis.zscore(RUN_INDEX, run_id) is not None
