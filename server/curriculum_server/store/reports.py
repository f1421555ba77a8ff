"""Reports: adding attempts to the ledger, each once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curriculum_server.store.batches import BatchRecord
from curriculum_server.store.columns import SIGNED
from curriculum_server.store.commit import EVENT_STREAM_LENGTH
from curriculum_server.store.connection import Argument, Redis, store_errors
from curriculum_server.store.keys import RunKeys

_REPORT = """
local meta, batch, record, lease, events = unpack(KEYS)
local layout, digest, window, step, ttl, rows, attempts_total, passes_total, kept = unpack(ARGV)
local column_names, deltas = ARGV[10], ARGV[11]
local state = redis.call('HMGET', meta, 'layout', 'policy_step')
if state[1] ~= layout then return {state[1] and 'stale' or 'gone'} end
local seen = redis.call('GET', record)
if seen then return {'seen', seen} end
local known = redis.call('HMGET', batch, 'expire', 'progress')
if not known[1] then return {'missing'} end
local mine, progress, closed = tonumber(known[1]), known[2], 32768

-- Every slot is looked at before anything is written, so that a refusal leaves nothing behind.
local cells, count, marks, full, mixed = {}, 0, {}, {}, 0
for slot, index, n, pass, allotted in string.gmatch(rows, '(%d+) (%d+) (%d+) (%d+) (%d+)') do
  local at, limit = tonumber(slot), tonumber(allotted)
  local mark = struct.unpack('>I4', progress, 4 * at + 1)
  local attempts, passes = math.floor(mark / 65536), mark % 65536
  if attempts + n > limit then return {'over', slot, string.format('%d', attempts)} end
  attempts, passes = attempts + n, passes + pass
  count = count + 1
  cells[count] = '#' .. index
  if attempts == limit then
    full[#full + 1] = cells[count]
    if passes > 0 and passes < attempts then mixed = mixed + 1 end
    attempts = attempts + closed
  end
  marks[at] = struct.pack('>I4', attempts * 65536 + passes)
end
local pieces = {}
for at = 0, #progress / 4 - 1 do
  pieces[at + 1] = marks[at] or string.sub(progress, 4 * at + 1, 4 * at + 4)
end
redis.call('HSET', batch, 'progress', table.concat(pieces))

for c = 6, #KEYS do
  local kind, args, k, i = ARGV[2 * c], {'OVERFLOW', 'SAT'}, 2, 0
  for n in string.gmatch(ARGV[2 * c + 1], '%S+') do
    i = i + 1
    if n ~= '0' then
      args[k + 1], args[k + 2], args[k + 3], args[k + 4] = 'INCRBY', kind, cells[i], n
      k = k + 4
    end
    if k > 6000 then redis.call('BITFIELD', KEYS[c], unpack(args, 1, k)); k = 2 end
  end
  if k > 2 then redis.call('BITFIELD', KEYS[c], unpack(args, 1, k)) end
end

-- Completed prompts go back to the pool, unless their lease ran out and another batch has them.
local freed = {}
for first = 1, #full, 1500 do
  local args, k = {}, 0
  for i = first, math.min(#full, first + 1499) do
    args[k + 1], args[k + 2], args[k + 3], args[k + 4] = 'SET', 'u32', full[i], '0'
    k = k + 4
  end
  for i, before in ipairs(redis.call('BITFIELD', lease, unpack(args))) do
    local cell = full[first + i - 1]
    if before == mine then
      freed[#freed + 1] = cell
    elseif before ~= 0 then
      redis.call('BITFIELD', lease, 'SET', 'u32', cell, string.format('%d', before))
    end
  end
end

local receipt = table.concat({attempts_total, passes_total, #full, mixed}, ' ')
redis.call('SET', record, digest .. receipt, 'EX', ttl)
redis.call('HINCRBY', meta, 'seq', 1)
if #full > 0 then
  redis.call('HINCRBY', meta, 'groups:' .. window, #full)
  redis.call('HINCRBY', meta, 'mixed:' .. window, mixed)
end
if tonumber(step) > tonumber(state[2]) then redis.call('HSET', meta, 'policy_step', step) end
redis.call('XADD', events, 'MAXLEN', '~', kept, '*', 'kind', 'report', 'window', window,
  'step', step, 'freed', table.concat(freed, ' '), 'groups', #full, 'mixed', mixed,
  'columns', column_names, 'deltas', deltas)
return {'ok', receipt}
"""


Amounts = NDArray[np.int64]


@dataclass(frozen=True)
class Deltas:
    """What one report adds: per slot its attempts and passes, per column its non-zero cells."""

    slot_B: NDArray[np.int64]
    index_B: NDArray[np.int64]
    attempts_B: NDArray[np.int64]
    passes_B: NDArray[np.int64]
    columns: Mapping[str, Amounts]
    """By column name, the amounts added to `index_B`'s cells."""


@dataclass(frozen=True)
class Receipt:
    """What a report changed."""

    attempt_count: int
    pass_count: int
    completed_group_count: int
    mixed_group_count: int
    duplicate: bool = False


@dataclass(frozen=True)
class ReportReply:
    """status: "ok", "seen" (`digest` is the first one's), "missing" (no such batch), "over" (`slot`
    has `reported` attempts already), "stale" or "gone"."""

    status: str
    receipt: Receipt = Receipt(0, 0, 0, 0)
    digest: bytes = b""
    slot: int = 0
    reported: int = 0


def encode_deltas(deltas: Deltas) -> tuple[str, bytes]:
    """The event's form: the columns' names, and packed i32 rows: indices, then each column."""
    used = {name: amounts_B for name, amounts_B in deltas.columns.items() if amounts_B.any()}
    table = np.stack([deltas.index_B, *used.values()])
    return " ".join(used), table.astype(">i4").tobytes()


def decode_deltas(names: bytes, blob: bytes) -> tuple[NDArray[np.int64], dict[str, Amounts]]:
    """Back from `encode_deltas`: indices, and by column what was added to them."""
    columns = names.decode().split()
    table = np.frombuffer(blob, ">i4").reshape(len(columns) + 1, -1).astype(np.int64)
    return table[0], dict(zip(columns, table[1:], strict=True))


async def report(
    redis: Redis,
    keys: RunKeys,
    record: BatchRecord,
    deltas: Deltas,
    *,
    request_id: str,
    digest: bytes,
    layout: int,
    window: int,
    policy_step: int,
    ttl_s: int,
) -> ReportReply:
    """Count a report once: all of it or nothing."""
    allotted_B = record.slots["attempt_count"][deltas.slot_B]
    rows = np.stack(
        [deltas.slot_B, deltas.index_B, deltas.attempts_B, deltas.passes_B, allotted_B], axis=1
    )
    header, blob = encode_deltas(deltas)
    names = [
        keys.meta,
        keys.batch(record.timeline, record.batch_id),
        keys.report(record.timeline, request_id),
        keys.lease,
        keys.events,
        *(keys.column(window, name) for name in header.split()),
    ]
    args: list[Argument] = [layout, digest, window, policy_step, ttl_s, _text(rows.ravel())]
    args += [int(deltas.attempts_B.sum()), int(deltas.passes_B.sum()), EVENT_STREAM_LENGTH]
    args += [header, blob]
    for name in header.split():
        args += ["i32" if name in SIGNED else "u32", _text(deltas.columns[name])]
    with store_errors():
        reply = await redis.register_script(_REPORT)(keys=names, args=args)
    return _decode(reply)


def _text(numbers: Amounts) -> str:
    return " ".join(map(str, numbers.tolist()))


def _decode(reply: list[bytes]) -> ReportReply:
    status = reply[0].decode()
    if status == "ok":
        return ReportReply(status, _receipt(reply[1]))
    if status == "seen":
        receipt = _receipt(reply[1][16:], duplicate=True)
        return ReportReply(status, receipt, digest=reply[1][:16])
    if status == "over":
        return ReportReply(status, slot=int(reply[1]), reported=int(reply[2]))
    return ReportReply(status)


def _receipt(text: bytes, *, duplicate: bool = False) -> Receipt:
    attempts, passes, completed, mixed = map(int, text.split())
    return Receipt(attempts, passes, completed, mixed, duplicate)
