"""Changing a run's layout: its document, pool, windows or timeline."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from curriculum_api.errors import StateError
from curriculum_server.store.connection import Argument, Redis, store_errors
from curriculum_server.store.document import Document
from curriculum_server.store.keys import RUN_INDEX, RunKeys

EVENT_STREAM_LENGTH = 1_024
"""Events kept for replicas that lag, some 25 KB each; one that lags further reloads."""
RECORD_TTL_S = 24 * 3600
KEYS_PER_SCRIPT = 1_000

_CREATE = """
local meta, events, deleted = unpack(KEYS)
if redis.call('HEXISTS', meta, 'layout') == 1 then return 0 end
if redis.call('EXISTS', meta) == 1 then return -1 end
local now = redis.call('TIME')
local now_ms = now[1] .. string.format('%03d', math.floor(now[2] / 1000))
local doc = string.gsub(ARGV[1], '"create_ms":%-1', '"create_ms":' .. now_ms, 1)
-- Layouts count from the time, so that no layout is that of a deleted run of the same name.
redis.call('HSET', meta, 'doc', doc, 'layout', now_ms, 'seq', '1', 'claims', '0',
  'policy_step', '0')
redis.call('XADD', events, '*', 'kind', 'created')
redis.call('DEL', deleted)
return 1
"""

# From here on the name is taken by the deletion, and its token says which: a repeat shares it, and
# what comes after the deletion's end is another run's.
_UNMAKE = """
local meta, deleted, ttl, token = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
token = redis.call('HGET', meta, 'deleting') or token
redis.call('HSET', meta, 'deleting', token)
redis.call('HDEL', meta, 'layout', 'import')
redis.call('SET', deleted, '', 'EX', ttl)
return token
"""

_UNLINK = """
if redis.call('HGET', KEYS[1], 'deleting') ~= ARGV[1] then return 0 end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""

_COMMIT = """
local meta, events = KEYS[1], KEYS[2]
local expected, kind, kept, doc = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local set_count, field_count, claims = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local state = redis.call('HMGET', meta, 'layout', 'claims')
local layout = state[1]
if layout ~= expected then return layout and 'stale' or 'gone' end
if claims ~= '' and claims ~= state[2] then return 'stale' end
-- By the time again, so that a change which a failover lost and the one after it differ.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('HSET', meta, 'doc', doc, 'layout', string.format('%d', math.max(layout + 1, now_ms)))
for i = 1, set_count do
  local key, ttl, value = KEYS[2 + i], tonumber(ARGV[6 + 2 * i]), ARGV[7 + 2 * i]
  redis.call('SET', key, value)
  if ttl > 0 then redis.call('EXPIRE', key, ttl) end
end
for i = 3 + set_count, #KEYS do redis.call('UNLINK', KEYS[i]) end
local base = 7 + 2 * set_count
for i = 1, field_count do
  local name, value = ARGV[base + 2 * i - 1], ARGV[base + 2 * i]
  if value == '' then
    redis.call('HDEL', meta, name)
  else
    redis.call('HSET', meta, name, value)
  end
end
redis.call('HINCRBY', meta, 'seq', 1)
redis.call('XADD', events, 'MAXLEN', '~', kept, '*', 'kind', kind)
return 'ok'
"""


@dataclass(frozen=True)
class Change:
    """What a commit does besides replacing the document."""

    reload: bool = False
    """Whether more changed than the document and the end of the pool: mirrors then start anew."""
    sets: Mapping[str, bytes] = field(default_factory=dict)
    records: Mapping[str, bytes] = field(default_factory=dict)
    """Like sets, but with a time to live."""
    deletes: Sequence[str] = ()
    claims: int | None = None
    """The number of leases ever made that the change is based on, if it is on leases."""
    meta_fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of the meta hash beside the document; an empty value removes the field."""


async def create_run(redis: Redis, keys: RunKeys, document: Document) -> bool:
    """Create the run unless it is there; True when this call made it. Safe to repeat."""
    with store_errors():
        made = await redis.eval(
            _CREATE, 3, keys.meta, keys.events, keys.deleted, document.to_json()
        )
        # A second key on another slot: repeated by every create, so that a crash between is mended.
        if made < 0:
            raise StateError(
                f"run_id={keys.run_id!r}: is being deleted or imported; repeat that, or delete it"
            )
        await redis.zadd(RUN_INDEX, {keys.run_id: 0})
    return bool(made)


async def commit(
    redis: Redis, keys: RunKeys, layout: int, document: Document, change: Change
) -> bool:
    """Replace the document and apply the change if the run still has this layout.

    Returns False when it has another one or is gone: the caller reads again and decides anew.
    """
    sets = [(key, 0, value) for key, value in change.sets.items()]
    sets += [(key, RECORD_TTL_S, value) for key, value in change.records.items()]
    kind = "reload" if change.reload else "layout"
    head: list[Argument] = [layout, kind, EVENT_STREAM_LENGTH, document.to_json()]
    counts: list[Argument] = [len(sets), len(change.meta_fields)]
    counts += ["" if change.claims is None else change.claims]
    values: list[Argument] = [part for _, ttl, value in sets for part in (ttl, value)]
    fields: list[Argument] = [part for item in change.meta_fields.items() for part in item]
    names = [keys.meta, keys.events, *(key for key, _, _ in sets), *change.deletes]
    with store_errors():
        reply = await redis.eval(_COMMIT, len(names), *names, *head, *counts, *values, *fields)
    return bool(reply == b"ok")


async def delete_run(redis: Redis, keys: RunKeys) -> None:
    """Remove every key of the run, and note that it was deleted. The layout goes first: from then
    on scripts refuse the run, and what a crash leaves behind is found by its prefix."""
    with store_errors():
        # Without its layout every script and reader takes the run for gone; the rest of the hash
        # keeps the name until the last key is away.
        token = await redis.eval(
            _UNMAKE, 2, keys.meta, keys.deleted, RECORD_TTL_S, uuid.uuid4().hex
        )
        await redis.zrem(RUN_INDEX, keys.run_id)
        found: list[bytes] = []
        pattern = keys.prefix.replace("[", "\\[")
        async for key in redis.scan_iter(match=f"{pattern}*", count=1000):
            if key not in (keys.meta.encode(), keys.deleted.encode()):
                found.append(key)
        for some in (*batched(found, KEYS_PER_SCRIPT), [keys.meta.encode()]):
            await redis.eval(_UNLINK, len(some) + 1, keys.meta, *some, token)


def batched(keys: Sequence[bytes], count: int) -> Iterator[Sequence[bytes]]:
    """Cut into parts of at most so many."""
    for first in range(0, len(keys), count):
        yield keys[first : first + count]


async def knows_run(redis: Redis, keys: RunKeys) -> bool:
    """Whether the run is there, in part at least, or was deleted a short while ago."""
    with store_errors():
        return bool(await redis.exists(keys.meta, keys.deleted))


async def list_runs(redis: Redis, after: str, limit: int) -> list[str]:
    """Run ids by name, after the given one."""
    start = f"({after}" if after else "-"
    with store_errors():
        names = await redis.zrangebylex(RUN_INDEX, start, "+", 0, limit)
    return [str(name, "utf-8") if isinstance(name, bytes) else name for name in names]
