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
local layout = redis.call('HGET', KEYS[1], 'layout')
if layout ~= ARGV[1] then return {layout and 'stale' or 'gone'} end
local seen = redis.call('GET', KEYS[3])
if seen then return {'seen', seen} end
local ours = redis.call('HMGET', KEYS[2], 'expire', 'progress')
if not ours[1] then return {'missing'} end
local digest, window, step, ttl = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local progress, mine = ours[2], tonumber(ours[1])

-- First look at every slot, so that a refusal leaves nothing behind.
local marks, full, mixed = {}, {}, 0
for slot, cell, n, pass, allotted in string.gmatch(ARGV[6], '(%d+) (%S+) (%d+) (%d+) (%d+)') do
  local at = tonumber(slot)
  local mark = struct.unpack('>I4', progress, 4 * at + 1)
  local attempts, passes = math.floor(mark / 65536), mark % 65536
  if attempts + n > tonumber(allotted) then return {'over', slot, string.format('%d', attempts)} end
  attempts, passes = attempts + n, passes + pass
  if attempts == tonumber(allotted) then
    full[#full + 1] = cell
    if passes > 0 and passes < attempts then mixed = mixed + 1 end
    attempts = attempts + 32768
  end
  marks[at] = struct.pack('>I4', attempts * 65536 + passes)
end
local pieces, from = {}, 0
for at = 0, #progress / 4 - 1 do
  pieces[at + 1] = marks[at] or string.sub(progress, 4 * at + 1, 4 * at + 4)
end
redis.call('HSET', KEYS[2], 'progress', table.concat(pieces))

local event = {}
for c = 6, #KEYS do
  local kind, args, k = ARGV[2 * c], {'OVERFLOW', 'SAT'}, 2
  for cell, n in string.gmatch(ARGV[2 * c + 1], '(%S+) (%S+)') do
    args[k + 1] = 'INCRBY'; args[k + 2] = kind; args[k + 3] = cell; args[k + 4] = n
    k = k + 4
    if k > 6000 then redis.call('BITFIELD', KEYS[c], unpack(args, 1, k)); k = 2 end
  end
  if k > 2 then redis.call('BITFIELD', KEYS[c], unpack(args, 1, k)) end
end

-- Completed prompts go back to the pool, unless their lease has run out and another batch has them.
local freed = {}
for start = 1, #full, 1500 do
  local args = {}
  local stop = math.min(#full, start + 1499)
  for i = start, stop do
    args[#args + 1] = 'SET'; args[#args + 1] = 'u32'; args[#args + 1] = full[i]; args[#args + 1] = '0'
  end
  for i, old in ipairs(redis.call('BITFIELD', KEYS[4], unpack(args))) do
    local cell = full[start + i - 1]
    if old == mine then freed[#freed + 1] = string.sub(cell, 2)
    elseif old ~= 0 then redis.call('BITFIELD', KEYS[4], 'SET', 'u32', cell, string.format('%d', old)) end
  end
end

local receipt = ARGV[7] .. ' ' .. ARGV[8] .. ' ' .. #full .. ' ' .. mixed
redis.call('SET', KEYS[3], digest .. receipt, 'EX', ttl)
if #full > 0 then
  redis.call('HINCRBY', KEYS[1], 'groups:' .. window, #full)
  redis.call('HINCRBY', KEYS[1], 'mixed:' .. window, mixed)
end
if tonumber(step) > tonumber(redis.call('HGET', KEYS[1], 'policy_step')) then redis.call('HSET', KEYS[1], 'policy_step', step) end
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[10], '*', 'kind', 'report', 'window', window, 'step', step,
  'freed', table.concat(freed, ' '), 'groups', #full, 'mixed', mixed, 'columns', ARGV[9], 'deltas', ARGV[11])
return {'ok', receipt}
"""


@dataclass(frozen=True)
class Deltas:
    """What one report adds: per slot its attempts and passes, per column its non-zero cells."""

    slot_B: NDArray[np.int64]
    index_B: NDArray[np.int64]
    attempts_B: NDArray[np.int64]
    passes_B: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.int64]]
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
    """The event's form: a JSON-free header `name:count …` and packed (index u32, amount i32)."""
    names, blobs = [], []
    for name, amounts_B in deltas.columns.items():
        used = amounts_B != 0
        pairs = np.stack([deltas.index_B[used], amounts_B[used]], axis=1)
        names.append(f"{name}={len(pairs)}")
        blobs.append(pairs.astype(">i4").tobytes())
    return " ".join(names), b"".join(blobs)


def decode_deltas(header: str, blob: bytes) -> dict[str, NDArray[np.int32]]:
    """By column name, (K, 2) pairs of prompt index and amount."""
    pairs, at, columns = np.frombuffer(blob, ">i4").reshape(-1, 2).astype(np.int32), 0, {}
    for part in header.split():
        name, count = part.rsplit("=", 1)
        columns[name] = pairs[at : at + int(count)]
        at += int(count)
    return columns


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
    cells = [f"#{index}" for index in deltas.index_B.tolist()]
    rows = zip(
        deltas.slot_B.tolist(),
        cells,
        deltas.attempts_B.tolist(),
        deltas.passes_B.tolist(),
        record.slots["attempt_count"][deltas.slot_B].tolist(),
        strict=True,
    )
    header, blob = encode_deltas(deltas)
    used = {name: amounts_B for name, amounts_B in deltas.columns.items() if amounts_B.any()}
    names = [
        keys.meta,
        keys.batch(record.timeline, record.batch_id),
        keys.report(record.timeline, request_id),
        keys.lease,
        keys.events,
        *(keys.column(window, name) for name in used),
    ]
    args: list[Argument] = [layout, digest, window, policy_step, ttl_s]
    args.append(" ".join("%d %s %d %d %d" % row for row in rows))
    args += [int(deltas.attempts_B.sum()), int(deltas.passes_B.sum()), header]
    args += [EVENT_STREAM_LENGTH, blob]
    for name, amounts_B in used.items():
        args.append("i32" if name in SIGNED else "u32")
        args.append(
            " ".join(f"{c} {n}" for c, n in zip(cells, amounts_B.tolist(), strict=True) if n)
        )
    with store_errors():
        reply = await redis.register_script(_REPORT)(keys=names, args=args)
    return _decode(reply)


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
