"""Reading a run: its snapshot, and its events since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from curriculum_server.store.batches import (
    CLOSED,
    BatchRecord,
    OpenBatch,
    decode_open,
    decode_records,
)
from curriculum_server.store.connection import Redis, store_errors
from curriculum_server.store.document import Document
from curriculum_server.store.keys import RunKeys

EVENTS_PER_READ = 2_000
NO_EVENT = b"0-0"


@dataclass(frozen=True)
class Header:
    """A run's meta hash and where its stream stands, read at one moment."""

    document: Document
    layout: int
    seq: int
    """Events written so far."""
    claims: int
    """Those of them that lease prompts."""
    policy_step: int
    groups: Mapping[int, tuple[int, int]]
    """By window: (completed groups, mixed groups)."""
    event_id: bytes


@dataclass(frozen=True)
class Catch:
    """What `catch_up` read, at one moment."""

    exists: bool
    seq: int
    claims: int
    events: list[tuple[bytes, dict[bytes, bytes]]]
    gap: bool
    """The stream does not lead on from the given event: only a reload helps."""
    forked: bool
    """It was not trimmed away either: the store knows another history."""
    now_s: float


async def load_header(redis: Redis, keys: RunKeys) -> Header | None:
    """The run's meta hash; None when there is no such run."""
    with store_errors():
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.meta)
            pipe.xrevrange(keys.events, count=1)
            meta, last = await pipe.execute()
    return _header(meta, last) if b"layout" in meta else None


@dataclass(frozen=True)
class Snapshot:
    """A run as of one event."""

    header: Header
    columns: Mapping[tuple[int, str], bytes]
    """By (window, name)."""
    batches: Sequence[OpenBatch]
    """Those whose leases may still hold."""


async def load_snapshot(redis: Redis, keys: RunKeys, columns: Sequence[str]) -> Snapshot | None:
    """All of the run but its prompts; None when the run is gone.

    The keys to read follow from the document and the leases, so these are read first, and all is
    read again if they moved between.
    """
    while (expected := await load_header(redis, keys)) is not None:
        wanted = [(w.window, name) for w in expected.document.windows for name in columns]
        with store_errors():
            leased = cast("list[bytes]", await redis.zrange(keys.leases, 0, -1))
            async with redis.pipeline(transaction=True) as pipe:
                pipe.hgetall(keys.meta)
                pipe.xrevrange(keys.events, count=1)
                for key in leased:
                    pipe.hmget(key, ["slots", "expire", "progress"])
                for window, name in wanted:
                    pipe.get(keys.column(window, name))
                meta, last, *values = await pipe.execute()
        if b"layout" not in meta:
            return None
        header = _header(meta, last)
        if (header.layout, header.claims) == (expected.layout, expected.claims):
            found, cells = values[: len(leased)], values[len(leased) :]
            batches = [decode_open("", hash_values) for hash_values in found]
            return Snapshot(
                header,
                {at: blob for at, blob in zip(wanted, cells, strict=True) if blob},
                [batch for batch in batches if batch is not None],
            )
    return None


async def load_chunks(
    redis: Redis, keys: RunKeys, first: int, stop: int
) -> list[tuple[bytes | None, bytes | None]]:
    """(catalog, payload) of each chunk in [first, stop)."""
    with store_errors():
        async with redis.pipeline(transaction=False) as pipe:
            for chunk in range(first, stop):
                pipe.get(keys.catalog(chunk))
                pipe.get(keys.payload(chunk))
            blobs = await pipe.execute()
    return list(zip(blobs[::2], blobs[1::2], strict=True))


async def load_embedding_chunks(
    redis: Redis, keys: RunKeys, first: int, stop: int
) -> list[bytes | None]:
    """Each chunk of embeddings in [first, stop)."""
    with store_errors():
        async with redis.pipeline(transaction=False) as pipe:
            for chunk in range(first, stop):
                pipe.get(keys.embedding(chunk))
            return list(await pipe.execute())


async def load_open_batches(redis: Redis, keys: RunKeys, number: int) -> dict[str, BatchRecord]:
    """The batches that were open at a checkpoint, by request_id."""
    blob = await load_record(redis, keys.open_batches(number))
    return decode_records(blob or b"")


async def load_leased(redis: Redis, keys: RunKeys) -> list[BatchRecord]:
    """The batches with prompts that are leased and not reported."""
    with store_errors():
        leased = cast("list[bytes]", await redis.zrange(keys.leases, 0, -1))
        async with redis.pipeline(transaction=True) as pipe:
            for key in leased:
                pipe.hmget(key, ["slots", "expire", "progress"])
            found = await pipe.execute() if leased else []
    batches = [
        decode_open(key.decode().removeprefix(keys.prefix).split(":", 2)[2], values)
        for key, values in zip(leased, found, strict=True)
    ]
    return [b.record for b in batches if b is not None and (b.progress_B < CLOSED).any()]


async def load_record(redis: Redis, key: str) -> bytes | None:
    """A record kept for idempotency."""
    with store_errors():
        return cast("bytes | None", await redis.get(key))


async def catch_up(redis: Redis, keys: RunKeys, after: bytes) -> Catch:
    """Events after the given one, and the store's clock."""
    with store_errors():
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hmget(keys.meta, ["layout", "seq", "claims"])
            pipe.time()
            pipe.xrange(keys.events, min=b"(" + after, count=EVENTS_PER_READ)
            pipe.xrange(keys.events, min=after, max=after)
            pipe.xrange(keys.events, count=1)
            (layout, seq, claims), now, events, here, oldest = await pipe.execute()
    return Catch(
        exists=layout is not None,
        seq=int(seq or 0),
        claims=int(claims or 0),
        events=events,
        gap=not here and after != NO_EVENT,
        forked=not here and bool(oldest) and _order(oldest[0][0]) < _order(after),
        now_s=now[0] + now[1] / 1e6,
    )


def _order(event_id: bytes) -> tuple[int, int]:
    milliseconds, sequence = event_id.split(b"-")
    return int(milliseconds), int(sequence)


def _header(meta: dict[bytes, Any], last: list[tuple[bytes, Any]]) -> Header:
    document = Document.from_json(meta[b"doc"])
    groups = {
        w.window: (
            int(meta.get(b"groups:%d" % w.window, 0)),
            int(meta.get(b"mixed:%d" % w.window, 0)),
        )
        for w in document.windows
    }
    event_id = last[0][0] if last else NO_EVENT
    return Header(
        document,
        int(meta[b"layout"]),
        int(meta[b"seq"]),
        int(meta[b"claims"]),
        int(meta[b"policy_step"]),
        groups,
        event_id,
    )
