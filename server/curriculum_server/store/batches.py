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

from curriculum_server.store.columns import SERVED, cell_names
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
local meta, batch, lease, served, events = unpack(KEYS)
local layout, seq, ttl, step, header, slots, cell_text = unpack(ARGV)
local pairs_blob, keep, kept = ARGV[8], ARGV[9], ARGV[10]
local state = redis.call('HMGET', meta, 'layout', 'seq', 'policy_step')
if state[1] ~= layout then return {state[1] and 'stale' or 'gone'} end
local known = redis.call('HMGET', batch, 'slots', 'expire')
if known[1] then return {'known', known[1], known[2]} end
if seq ~= '' and seq ~= state[2] then return {'behind'} end

local now = tonumber(redis.call('TIME')[1])
local expire = string.format('%d', now + ttl)
local cells, count = {}, 0
for cell in string.gmatch(cell_text, '%S+') do count = count + 1; cells[count] = cell end
local function set_leases(value_of)
  local before = {}
  for first = 1, count, 1500 do
    local args, k = {}, 0
    for i = first, math.min(count, first + 1499) do
      args[k + 1], args[k + 2], args[k + 3], args[k + 4] = 'SET', 'u32', cells[i], value_of(i)
      k = k + 4
    end
    for i, old in ipairs(redis.call('BITFIELD', lease, unpack(args))) do
      before[first + i - 1] = old
    end
  end
  return before
end
local before, busy = set_leases(function() return expire end), {}
for i = 1, count do
  if before[i] > now then
    busy[#busy + 1] = string.sub(cells[i], 2)
    busy[#busy + 1] = string.format('%d', before[i])
  end
end
if #busy > 0 then
  set_leases(function(i) return string.format('%d', before[i]) end)
  return {'busy', table.concat(busy, ' ')}
end

redis.call('HSET', batch, 'slots', header .. slots, 'expire', expire,
  'progress', string.rep('\\0', 4 * count))
redis.call('EXPIRE', batch, 2 * ttl + keep)
if pairs_blob ~= '' then redis.call('APPEND', served, pairs_blob) end
if tonumber(step) > tonumber(state[3]) then redis.call('HSET', meta, 'policy_step', step) end
redis.call('HINCRBY', meta, 'seq', 1)
redis.call('XADD', events, 'MAXLEN', '~', kept, '*', 'kind', 'claim', 'step', step,
  'expire', expire, 'cells', cell_text, 'served', pairs_blob == '' and '0' or '1')
return {'ok', expire}
"""

_LEASE_CHANGE = """
local meta, batch, lease, events = unpack(KEYS)
local header_size, slot_size, extend, keep, kept = unpack(ARGV)
local known = redis.call('HMGET', batch, 'slots', 'expire', 'progress')
if not known[1] then return {'missing'} end
local slots, mine, progress = known[1], tonumber(known[2]), known[3]
local now, closed = tonumber(redis.call('TIME')[1]), 2147483648
local renews = tonumber(extend) > 0
local value = renews and string.format('%d', now + extend) or '0'
local changed, marks = {}, {}
for slot = 0, #progress / 4 - 1 do
  local mark = struct.unpack('>I4', progress, 4 * slot + 1)
  if mark < closed then
    local index = struct.unpack('>I4', slots, header_size + slot * slot_size + 1)
    local cell = '#' .. string.format('%d', index)
    local holder = redis.call('BITFIELD', lease, 'GET', 'u32', cell)[1]
    if holder == mine and (not renews or mine > now) then
      redis.call('BITFIELD', lease, 'SET', 'u32', cell, value)
      changed[#changed + 1] = cell
    end
    if not renews then mark = mark + closed end
  end
  marks[slot + 1] = struct.pack('>I4', mark)
end
redis.call('HSET', batch, 'progress', table.concat(marks))
if #changed > 0 then
  if renews then
    redis.call('HSET', batch, 'expire', value)
    redis.call('EXPIRE', batch, 2 * extend + keep)
  end
  redis.call('HINCRBY', meta, 'seq', 1)
  redis.call('XADD', events, 'MAXLEN', '~', kept, '*', 'kind', 'lease', 'expire', value,
    'cells', table.concat(changed, ' '))
end
return {'ok', #changed, renews and #changed > 0 and value or known[2]}
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
    else holds some: `busy` are pairs of index and expiry), "behind" (there are newer events),
    "stale" (a newer layout) or "gone".
    """

    status: str
    record: BatchRecord
    busy: NDArray[np.int64]


async def claim(
    redis: Redis,
    keys: RunKeys,
    record: BatchRecord,
    *,
    layout: int,
    seq: int | None,
    window: int,
    ttl_s: int,
    mark_served: bool,
) -> ClaimReply:
    """Lease all the record's prompts or none, and keep the record under its batch id.

    `seq`: the number of events the choice was made on, None to claim whatever happened since.
    `mark_served` notes the policy step in the window's log of servings, which the rest period
    reads; probes do not.
    """
    index_B = record.slots["index"]
    served = np.empty((len(index_B), 2), ">u4")
    served[:, 0], served[:, 1] = index_B, record.policy_step
    names = [
        keys.meta,
        keys.batch(record.timeline, record.batch_id),
        keys.lease,
        keys.column(window, SERVED),
        keys.events,
    ]
    args: list[Argument] = [layout, "" if seq is None else seq, ttl_s, record.policy_step]
    args += [record.header(), record.slots.tobytes(), cell_names(index_B)]
    args += [served.tobytes() if mark_served else b"", RECORD_GRACE_S, EVENT_STREAM_LENGTH]
    with store_errors():
        reply = await redis.register_script(_CLAIM)(keys=names, args=args)
    status = reply[0].decode()
    busy = np.zeros((0, 2), np.int64)
    if status == "ok":
        record = replace(record, expire_s=int(reply[1]))
    elif status == "known":
        record = BatchRecord.decode(record.batch_id, reply[1], int(reply[2]))
    elif status == "busy":
        busy = np.array(reply[1].split(), np.int64).reshape(-1, 2)
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
        reply = await redis.register_script(_LEASE_CHANGE)(keys=names, args=args)
    return None if reply[0] == b"missing" else (int(reply[1]), int(reply[2]))
