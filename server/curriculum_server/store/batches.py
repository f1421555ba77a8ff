"""Batches: leasing prompts, and giving or keeping their leases.

A batch is one hash with a time to live: `slots` (packed `SLOT_DTYPE` records behind a header),
`expire` (the second at which its leases run out), `born` (the second and event of its making, which
tell it from a batch of the same name that was forgotten) and `progress`, a u32 per slot:

    bit 31 closed (all attempts reported, or released) | bits 16–30 attempts | bits 0–15 passes

In a run with an objective bits 0–15 tell instead whether its attempts differ in it: they are the
objective of every attempt so far, in fixed point and so at most 16,384, or `MIXED`.

A prompt is leased while it is in an open slot of a batch that has not expired. That no two batches
lease one prompt follows from one rule: whoever leases prompts, or prolongs leases, must have seen
every lease before (`claims` counts them, and the script compares).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum_server.store.columns import SERVED
from curriculum_server.store.commit import EVENT_STREAM_LENGTH
from curriculum_server.store.connection import Argument, Redis, store_errors
from curriculum_server.store.keys import RunKeys

SLOT_DTYPE = np.dtype(
    [
        ("index", ">u4"),
        ("attempt_count", ">u2"),
        ("reason", "u1"),
        ("pad", "u1"),
        ("pass_rate", ">f4"),
        ("pass_rate_low", ">f4"),
        ("pass_rate_high", ">f4"),
    ]
)
_HEADER = struct.Struct(">16sIII")
_LENGTHS = struct.Struct(">II")
RECORD_GRACE_S = 3600
"""A batch outlives its leases by one more lease and this, so that late reports still count."""

CLOSED = 1 << 31
"""Set in the progress of a slot that takes no more attempts."""
MIXED = (1 << 16) - 1
"""In the low bits of a slot's progress: its attempts differ in the run's objective."""
INDEX_DTYPE = np.dtype(">u4")

Progress = NDArray[np.uint32]
Indices = NDArray[np.int64]

_CLAIM = """
local meta, batch, leases, served, events = unpack(KEYS)
local layout, seq, claims, ttl, step, slots, indices = unpack(ARGV)
local pairs_blob, keep, kept, seen, tip = unpack(ARGV, 8)
local state = redis.call('HMGET', meta, 'layout', 'seq', 'claims', 'policy_step')
if state[1] ~= layout then return {state[1] and 'stale' or 'gone'} end
local known = redis.call('HMGET', batch, 'slots', 'expire')
if known[1] then return {'known', known[1], known[2]} end
-- A store that lost its last events and got as many new ones counts the same: the newest tells.
local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
local is_fresh = seq == state[2] and (not newest or newest[1] == tip)
if claims ~= state[3] or (seq ~= '' and not is_fresh) then return {'behind'} end

local now = tonumber(redis.call('TIME')[1])
-- The clock went back: leases that the caller took for run out hold again.
if now < tonumber(seen) then return {'behind'} end
local expire = string.format('%d', now + ttl)
redis.call('HSET', batch, 'slots', slots, 'expire', expire, 'progress', string.rep('\\0', #indices),
  'born', now .. '-' .. state[2])
redis.call('EXPIRE', batch, 2 * ttl + keep)
redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
redis.call('ZADD', leases, expire, batch)
if pairs_blob ~= '' then redis.call('APPEND', served, pairs_blob) end
redis.call('HINCRBY', meta, 'claims', 1)
local now_seq = redis.call('HINCRBY', meta, 'seq', 1)
if tonumber(step) > tonumber(state[4]) then redis.call('HSET', meta, 'policy_step', step) end
redis.call('XADD', events, 'MAXLEN', '~', kept, '*', 'kind', 'claim', 'step', step,
  'expire', expire, 'indices', indices, 'served', pairs_blob == '' and '0' or '1')
return {'ok', expire, now_seq}
"""

_SET_LEASES = """
local meta, batch, leases, events = unpack(KEYS)
local before, after, extend, indices, keep, kept, layout = unpack(ARGV)
if redis.call('HGET', meta, 'layout') ~= layout then return {'stale'} end
local known = redis.call('HMGET', batch, 'expire', 'progress')
if not known[1] then return {'missing'} end
if known[2] ~= before then return {'moved'} end
local now, expire = tonumber(redis.call('TIME')[1]), '0'
if tonumber(extend) > 0 then
  -- A claim takes the batches that have run out off the list: a clock that goes back has them not
  -- run out again, but their prompts may be leased elsewhere by then.
  local listed = redis.call('ZSCORE', leases, batch)
  if tonumber(known[1]) <= now or not listed then return {'expired', known[1]} end
  expire = string.format('%d', now + extend)
  redis.call('HSET', batch, 'expire', expire)
  redis.call('EXPIRE', batch, 2 * extend + keep)
  redis.call('ZADD', leases, expire, batch)
  redis.call('HINCRBY', meta, 'claims', 1)
else
  redis.call('HSET', batch, 'progress', after)
  redis.call('ZREM', leases, batch)
end
redis.call('HINCRBY', meta, 'seq', 1)
redis.call('XADD', events, 'MAXLEN', '~', kept, '*', 'kind', 'lease', 'before', known[1],
  'expire', expire, 'indices', indices)
return {'ok', expire}
"""


@dataclass(frozen=True)
class BatchRecord:
    """A batch as the store keeps it."""

    batch_id: str
    timeline: int
    policy_step: int
    digest: bytes
    """16 bytes that differ when the request's content differs."""
    slots: NDArray[np.void]
    """B records of `SLOT_DTYPE`."""
    shortfall: str = ""
    expire_s: int = 0

    def encode(self) -> bytes:
        """A header and the slots; `expire_s` is kept apart."""
        text = self.shortfall.encode()
        header = _HEADER.pack(self.digest, self.timeline, self.policy_step, len(text))
        return header + text + self.slots.tobytes()

    @classmethod
    def decode(cls, batch_id: str, blob: bytes, expire_s: int) -> BatchRecord:
        digest, timeline, step, length = _HEADER.unpack_from(blob)
        at = _HEADER.size + length
        shortfall = blob[_HEADER.size : at].decode()
        slots = np.frombuffer(blob, SLOT_DTYPE, offset=at)
        return cls(batch_id, timeline, step, digest, slots, shortfall, expire_s)


@dataclass(frozen=True)
class ClaimReply:
    """What came of a claim.

    status: "ok", "known" (the request was served before: `record` is its batch), "behind" (there
    are newer events), "stale" (a newer layout) or "gone".
    """

    status: str
    record: BatchRecord
    seq: int = 0
    """Events written, this claim's own included."""


@dataclass(frozen=True)
class OpenBatch:
    """A batch and how far it has come."""

    record: BatchRecord
    progress_B: Progress
    born: bytes = b""
    """Tells batches of one name apart; only `load_batch` reads it."""


async def claim(
    redis: Redis,
    keys: RunKeys,
    record: BatchRecord,
    *,
    layout: int,
    seq: int | None,
    claims: int,
    event_id: bytes,
    now_s: int,
    window: int,
    ttl_s: int,
    mark_served: bool,
) -> ClaimReply:
    """Lease the record's prompts, and keep the record under its batch id.

    `claims` and `seq` are the numbers of leases and of events that the choice was made on,
    `event_id` the last of these and `now_s` the second; with `seq` None other events may have come
    since. `mark_served` notes the policy step in the window's log of servings, which the rest
    period reads; probes do not.
    """
    index_B = record.slots["index"]
    served = np.empty((len(index_B), 2), INDEX_DTYPE)
    served[:, 0], served[:, 1] = index_B, record.policy_step
    names = [
        keys.meta,
        keys.batch(record.timeline, record.batch_id),
        keys.leases,
        keys.column(window, SERVED),
        keys.events,
    ]
    args: list[Argument] = [layout, "" if seq is None else seq, claims, ttl_s, record.policy_step]
    args += [record.encode(), index_B.astype(INDEX_DTYPE).tobytes()]
    args += [served.tobytes() if mark_served else b"", RECORD_GRACE_S, EVENT_STREAM_LENGTH]
    args += [now_s, event_id]
    with store_errors():
        reply = await redis.register_script(_CLAIM)(keys=names, args=args)
    status = reply[0].decode()
    if status == "ok":
        record = replace(record, expire_s=int(reply[1]))
    elif status == "known":
        record = BatchRecord.decode(record.batch_id, reply[1], int(reply[2]))
    return ClaimReply(status, record, int(reply[2]) if status == "ok" else 0)


async def load_batch(redis: Redis, keys: RunKeys, timeline: int, batch_id: str) -> OpenBatch | None:
    """The batch, or None when it was never made or its time to live has passed."""
    with store_errors():
        found: Any = await redis.hmget(
            keys.batch(timeline, batch_id), ["slots", "expire", "progress", "born"]
        )
    *fields, born = found
    batch = decode_open(batch_id, fields)
    return None if batch is None else replace(batch, born=born or b"")


def decode_open(batch_id: str, found: Sequence[bytes | None]) -> OpenBatch | None:
    """A batch from its hash's `slots`, `expire` and `progress`."""
    slots, expire, progress = found
    if slots is None or expire is None or progress is None:
        return None
    record = BatchRecord.decode(batch_id, slots, int(expire))
    return OpenBatch(record, decode_progress(progress))


def encode_progress(progress_B: NDArray[np.integer]) -> bytes:
    """Packed big-endian."""
    return progress_B.astype(">u4").tobytes()


def decode_progress(blob: bytes) -> Progress:
    """Back from `encode_progress`."""
    return np.frombuffer(blob, ">u4").astype(np.uint32)


def encode_records(records: Sequence[BatchRecord]) -> bytes:
    """Batches one behind the other, each its name and content behind their lengths."""
    parts = []
    for record in records:
        name, content = record.batch_id.encode(), record.encode()
        parts += [_LENGTHS.pack(len(name), len(content)), name, content]
    return b"".join(parts)


def decode_records(blob: bytes) -> dict[str, BatchRecord]:
    """Back from `encode_records`, by name."""
    records, at = {}, 0
    while at < len(blob):
        name_length, length = _LENGTHS.unpack_from(blob, at)
        start = at + _LENGTHS.size
        at = start + name_length + length
        name = blob[start : start + name_length].decode()
        records[name] = BatchRecord.decode(name, blob[start + name_length : at], 0)
    return records


async def release(redis: Redis, keys: RunKeys, batch: OpenBatch, layout: int) -> str:
    """Close the batch's open slots and free their prompts.

    Returns "ok", "missing" (the batch is kept no longer) or "moved" (it has come further).
    """
    status, _ = await _set_leases(redis, keys, batch, layout, extend_s=0)
    return status


async def renew(
    redis: Redis, keys: RunKeys, batch: OpenBatch, layout: int, ttl_s: int
) -> tuple[str, int]:
    """Extend the leases of the batch's open slots: (status, expiry).

    The status is that of `release`, or "expired": the prompts may be leased elsewhere by now.
    """
    return await _set_leases(redis, keys, batch, layout, extend_s=ttl_s)


async def _set_leases(
    redis: Redis, keys: RunKeys, batch: OpenBatch, layout: int, *, extend_s: int
) -> tuple[str, int]:
    record, before_B = batch.record, batch.progress_B
    open_B = before_B < CLOSED
    names = [keys.meta, keys.batch(record.timeline, record.batch_id), keys.leases, keys.events]
    args: list[Argument] = [encode_progress(before_B), encode_progress(before_B | CLOSED)]
    args += [extend_s, record.slots["index"][open_B].astype(INDEX_DTYPE).tobytes()]
    args += [RECORD_GRACE_S, EVENT_STREAM_LENGTH, layout]
    with store_errors():
        reply = await redis.register_script(_SET_LEASES)(keys=names, args=args)
    return reply[0].decode(), int(reply[1]) if len(reply) > 1 else 0
