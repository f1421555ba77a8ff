"""Batches: leasing prompts, and giving or keeping their leases.

A batch is one hash with a time to live: `slots` (packed `SLOT_DTYPE` records behind a header),
`expire` (the second at which its leases run out) and `progress`, a u32 per slot:

    bit 31 closed (all attempts reported, or released) | bits 16–30 attempts | bits 0–15 passes

A prompt's lease cell holds the expiry of the batch that has it, so a batch gives back only
cells that still hold its own expiry.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
MAX_SLOT_ATTEMPTS = (1 << 15) - 1
_HEADER = struct.Struct(">16sIII")
RECORD_GRACE_S = 3600
"""A batch outlives its leases by one more lease and this, so that late reports still count."""

_CLAIM = """
local layout = redis.call('HGET', KEYS[1], 'layout')
if layout ~= ARGV[1] then return {layout and 'stale' or 'gone'} end
local known = redis.call('HMGET', KEYS[2], 'slots', 'expire')
if known[1] then return {'known', known[1], known[2]} end
local now = tonumber(redis.call('TIME')[1])
local ttl, count, window, step = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local wanted, size = ARGV[7], tonumber(ARGV[8])
local cells = {}
for i = 1, count do cells[i] = '#' .. struct.unpack('>I4', wanted, (i - 1) * size + 1) end
local function bitfield(key, verb, value)
  local all = {}
  for from = 1, count, 1500 do
    local args = {}
    for i = from, math.min(count, from + 1499) do
      args[#args + 1] = verb; args[#args + 1] = 'u32'; args[#args + 1] = cells[i]
      if value then args[#args + 1] = value end
    end
    for _, v in ipairs(redis.call('BITFIELD', key, unpack(args))) do all[#all + 1] = v end
  end
  return all
end
local busy = {}
for i, expire in ipairs(bitfield(KEYS[3], 'GET')) do
  if expire > now then
    busy[#busy + 1] = string.sub(wanted, (i - 1) * size + 1, (i - 1) * size + 4) .. struct.pack('>I4', expire)
  end
end
if #busy > 0 then return {'busy', table.concat(busy)} end
local expire = string.format('%d', now + ttl)
if count > 0 then
  bitfield(KEYS[3], 'SET', expire)
  if ARGV[10] == '1' then bitfield(KEYS[4], 'SET', string.format('%d', step + 1)) end
end
redis.call('HSET', KEYS[2], 'slots', ARGV[6] .. wanted, 'expire', expire, 'progress', string.rep('\\0', 4 * count))
redis.call('EXPIRE', KEYS[2], 2 * ttl + tonumber(ARGV[9]))
if tonumber(step) > tonumber(redis.call('HGET', KEYS[1], 'policy_step')) then redis.call('HSET', KEYS[1], 'policy_step', step) end
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[11], '*', 'kind', 'claim', 'window', window, 'step', step,
  'expire', expire, 'served', ARGV[10], 'slots', wanted)
return {'ok', expire}
"""

_RELEASE = """
local slots = redis.call('HMGET', KEYS[2], 'slots', 'expire', 'progress')
if not slots[1] then return {'missing'} end
local at, size, extend = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local records, mine, progress = slots[1], tonumber(slots[2]), slots[3]
local count = #progress / 4
local now = tonumber(redis.call('TIME')[1])
local lease = extend > 0 and now + extend or 0
local touched, marks, held = {}, {}, 0
for i = 1, count do
  local mark = struct.unpack('>I4', progress, 4 * i - 3)
  if mark < 2147483648 then
    local index = string.sub(records, at + (i - 1) * size + 1, at + (i - 1) * size + 4)
    local cell = '#' .. struct.unpack('>I4', index)
    if redis.call('BITFIELD', KEYS[3], 'GET', 'u32', cell)[1] == mine and (lease == 0 or mine > now) then
      redis.call('BITFIELD', KEYS[3], 'SET', 'u32', cell, string.format('%d', lease))
      touched[#touched + 1] = index
      held = held + 1
    end
    if lease == 0 then mark = mark + 2147483648 end
  end
  marks[i] = struct.pack('>I4', mark)
end
redis.call('HSET', KEYS[2], 'progress', table.concat(marks))
if lease > 0 and held > 0 then
  redis.call('HSET', KEYS[2], 'expire', string.format('%d', lease))
  redis.call('EXPIRE', KEYS[2], 2 * extend + tonumber(ARGV[4]))
end
if held > 0 then
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'kind', 'lease', 'expire', string.format('%d', lease), 'indices', table.concat(touched))
end
return {'ok', held, string.format('%d', held > 0 and lease or mine)}
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

    def header(self) -> bytes:
        text = self.shortfall.encode()
        return _HEADER.pack(self.digest, self.timeline, self.policy_step, len(text)) + text

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

    status: "ok", "known" (the request was served before: `record` is its batch), "busy" (somebody
    else holds some: `busy` are pairs of index and expiry), "stale" or "gone".
    """

    status: str
    record: BatchRecord
    busy: NDArray[np.uint32]


async def claim(
    redis: Redis,
    keys: RunKeys,
    record: BatchRecord,
    *,
    layout: int,
    window: int,
    ttl_s: int,
    mark_served: bool,
) -> ClaimReply:
    """Lease all the record's prompts or none, and keep the record under its batch id.

    `mark_served` notes the policy step in the window's `served` column, which the rest period
    reads; probes do not.
    """
    names = [
        keys.meta,
        keys.batch(record.timeline, record.batch_id),
        keys.lease,
        keys.column(window, "served"),
        keys.events,
    ]
    args: list[Argument] = [
        layout,
        ttl_s,
        len(record.slots),
        window,
        record.policy_step,
        record.header(),
    ]
    args += [record.slots.tobytes(), SLOT_DTYPE.itemsize, RECORD_GRACE_S]
    args += [int(mark_served), EVENT_STREAM_LENGTH]
    with store_errors():
        reply = await redis.register_script(_CLAIM)(keys=names, args=args)
    status = reply[0].decode()
    busy = np.zeros((0, 2), np.uint32)
    if status == "ok":
        record = replace(record, expire_s=int(reply[1]))
    elif status == "known":
        record = BatchRecord.decode(record.batch_id, reply[1], int(reply[2]))
    elif status == "busy":
        busy = np.frombuffer(reply[1], ">u4").reshape(-1, 2).astype(np.uint32)
    return ClaimReply(status, record, busy)


async def load_batch(
    redis: Redis, keys: RunKeys, timeline: int, batch_id: str
) -> BatchRecord | None:
    """The batch, or None when it was never made or its time to live has passed."""
    with store_errors():
        found: Any = await redis.hmget(keys.batch(timeline, batch_id), ["slots", "expire"])
    blob, expire = found
    return None if blob is None else BatchRecord.decode(batch_id, blob, int(expire))


async def release(redis: Redis, keys: RunKeys, record: BatchRecord) -> int | None:
    """Close the batch's open slots and free their prompts; the number freed, None when unknown."""
    reply = await _lease_change(redis, keys, record, extend_s=0)
    return None if reply is None else reply[0]


async def renew(
    redis: Redis, keys: RunKeys, record: BatchRecord, ttl_s: int
) -> tuple[int, int] | None:
    """Extend the leases that the batch still holds: (number held, expiry), None when unknown."""
    return await _lease_change(redis, keys, record, extend_s=ttl_s)


async def _lease_change(
    redis: Redis, keys: RunKeys, record: BatchRecord, *, extend_s: int
) -> tuple[int, int] | None:
    names = [keys.meta, keys.batch(record.timeline, record.batch_id), keys.lease, keys.events]
    args: list[Argument] = [len(record.header()), SLOT_DTYPE.itemsize, extend_s, RECORD_GRACE_S]
    args.append(EVENT_STREAM_LENGTH)
    with store_errors():
        reply = await redis.register_script(_RELEASE)(keys=names, args=args)
    return None if reply[0] == b"missing" else (int(reply[1]), int(reply[2]))
