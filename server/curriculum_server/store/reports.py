"""Reports: adding attempts to the ledger, each once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum_server.store.batches import (
    INDEX_DTYPE,
    Indices,
    OpenBatch,
    Progress,
    decode_progress,
    encode_progress,
)
from curriculum_server.store.columns import SIGNED
from curriculum_server.store.commit import EVENT_STREAM_LENGTH
from curriculum_server.store.connection import Argument, Redis, store_errors
from curriculum_server.store.keys import RunKeys

_REPORT = """
local meta, batch, record, events = unpack(KEYS)
local layout, digest, window, step, ttl, before, after, completed, kept = unpack(ARGV)
local attempts, passes, groups, mixed = ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local column_names, deltas, cell_text, born = ARGV[14], ARGV[15], ARGV[16], ARGV[17]
local state = redis.call('HMGET', meta, 'layout', 'policy_step')
if state[1] ~= layout then return {state[1] and 'stale' or 'gone'} end
local seen = redis.call('GET', record)
if seen then return {'seen', seen} end
local known = redis.call('HMGET', batch, 'expire', 'progress', 'born')
if not known[1] then return {'missing'} end
if (known[3] or '') ~= born then return {'other'} end
if known[2] ~= before then return {'moved', known[2]} end

redis.call('HSET', batch, 'progress', after)
local cells, count = {}, 0
for cell in string.gmatch(cell_text, '%S+') do count = count + 1; cells[count] = cell end
for c = 5, #KEYS do
  local kind, args, k, i = ARGV[2 * c + 8], {'OVERFLOW', 'SAT'}, 2, 0
  for n in string.gmatch(ARGV[2 * c + 9], '%S+') do
    i = i + 1
    if n ~= '0' then
      args[k + 1], args[k + 2], args[k + 3], args[k + 4] = 'INCRBY', kind, cells[i], n
      k = k + 4
    end
    if k > 6000 then redis.call('BITFIELD', KEYS[c], unpack(args, 1, k)); k = 2 end
  end
  if k > 2 then redis.call('BITFIELD', KEYS[c], unpack(args, 1, k)) end
end

local receipt = table.concat({attempts, passes, groups, mixed}, ' ')
-- Kept for as long as the batch, or a late repeat would count again.
local keep = math.max(tonumber(ttl), redis.call('TTL', batch))
redis.call('SET', record, digest .. receipt, 'EX', string.format('%d', keep))
local now_seq = redis.call('HINCRBY', meta, 'seq', 1)
if groups ~= '0' then
  redis.call('HINCRBY', meta, 'groups:' .. window, groups)
  redis.call('HINCRBY', meta, 'mixed:' .. window, mixed)
end
if tonumber(step) > tonumber(state[2]) then redis.call('HSET', meta, 'policy_step', step) end
redis.call('XADD', events, 'MAXLEN', '~', kept, '*', 'kind', 'report', 'window', window,
  'step', step, 'before', known[1], 'completed', completed, 'groups', groups, 'mixed', mixed,
  'columns', column_names, 'deltas', deltas)
return {'ok', now_seq}
"""


Amounts = NDArray[np.int64]


@dataclass(frozen=True)
class Deltas:
    """What one report adds: per attempted slot its attempts and passes, and to every column."""

    slot_B: NDArray[np.int64]
    index_B: NDArray[np.int64]
    attempts_B: NDArray[np.int64]
    passes_B: NDArray[np.int64]
    columns: Mapping[str, Amounts]
    """By column name, the amounts added to `index_B`'s cells."""
    objective_B: NDArray[np.int64] | None = None
    """In a run with an objective, each slot's: that of all its attempts, or `MIXED`."""


@dataclass(frozen=True)
class Advance:
    """What one report does to its batch."""

    after_B: Progress
    completed_index_K: Indices
    """Prompts of the slots that the report completes."""
    group_count: int
    """How many of them are a trainer's groups."""
    mixed_group_count: int


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
    """status: "ok", "seen" (`digest` is the first one's), "missing" (no such batch), "other" (there
    is another batch of that name by now), "moved" (the batch has come to `progress_B`), "stale" (a
    newer layout) or "gone"."""

    status: str
    receipt: Receipt = Receipt(0, 0, 0, 0)
    digest: bytes = b""
    seq: int = 0
    """Events written, this report's own included."""
    progress_B: Progress | None = None


def encode_deltas(deltas: Deltas) -> tuple[str, bytes]:
    """The event's form: the columns' names behind the width of a cell, and packed rows: indices,
    then each column."""
    used = {name: amounts_B for name, amounts_B in deltas.columns.items() if amounts_B.any()}
    table = np.stack([deltas.index_B, *used.values()])
    width = 4 if table.max() < 1 << 31 else 8
    return " ".join([str(width), *used]), table.astype(f">i{width}").tobytes()


def decode_deltas(names: bytes, blob: bytes) -> tuple[NDArray[np.int64], dict[str, Amounts]]:
    """Back from `encode_deltas`: indices, and by column what was added to them."""
    width, *columns = names.decode().split()
    table = np.frombuffer(blob, f">i{width}").reshape(len(columns) + 1, -1).astype(np.int64)
    return table[0], dict(zip(columns, table[1:], strict=True))


async def report(
    redis: Redis,
    keys: RunKeys,
    batch: OpenBatch,
    deltas: Deltas,
    advance: Advance,
    *,
    request_id: str,
    digest: bytes,
    layout: int,
    window: int,
    policy_step: int,
    ttl_s: int,
) -> ReportReply:
    """Count a report once, if the batch has come no further: all of it or nothing."""
    record, groups = batch.record, advance.group_count
    receipt = Receipt(
        int(deltas.attempts_B.sum()), int(deltas.passes_B.sum()), groups, advance.mixed_group_count
    )
    header, blob = encode_deltas(deltas)
    columns = header.split()[1:]
    names = [
        keys.meta,
        keys.batch(record.timeline, record.batch_id),
        keys.report(record.timeline, request_id),
        keys.events,
        *(keys.column(window, name) for name in columns),
    ]
    args: list[Argument] = [layout, digest, window, policy_step, ttl_s]
    args += [encode_progress(batch.progress_B), encode_progress(advance.after_B)]
    args += [advance.completed_index_K.astype(INDEX_DTYPE).tobytes(), EVENT_STREAM_LENGTH]
    args += [receipt.attempt_count, receipt.pass_count, groups, receipt.mixed_group_count]
    args += [header, blob, "#" + " #".join(map(str, deltas.index_B.tolist()))]
    args += [batch.born]
    for name in columns:
        args += ["i32" if name in SIGNED else "u32", _text(deltas.columns[name])]
    with store_errors():
        reply = await redis.register_script(_REPORT)(keys=names, args=args)
    return _decode(reply, receipt)


async def load_report(
    redis: Redis, keys: RunKeys, timeline: int, request_id: str
) -> ReportReply | None:
    """What a report of that name got before, if there was one."""
    with store_errors():
        seen = await redis.get(keys.report(timeline, request_id))
    return None if seen is None else _decode([b"seen", seen], Receipt(0, 0, 0, 0))


def _decode(reply: list[Any], receipt: Receipt) -> ReportReply:
    status = reply[0].decode()
    if status == "ok":
        return ReportReply(status, receipt, seq=int(reply[1]))
    if status == "seen":
        attempts, passes, groups, mixed = map(int, reply[1][16:].split())
        first = Receipt(attempts, passes, groups, mixed, duplicate=True)
        return ReportReply(status, first, digest=reply[1][:16])
    if status == "moved":
        return ReportReply(status, progress_B=decode_progress(reply[1]))
    return ReportReply(status)


def _text(numbers: Amounts) -> str:
    return " ".join(map(str, numbers.tolist()))
