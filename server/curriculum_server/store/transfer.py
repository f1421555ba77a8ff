"""Reading a run piece by piece, and making one of pieces.

A run that is being imported has a meta hash without a `layout`, so that it is there for nobody, and
all its keys have a time to live, so that what an interrupted import leaves goes by itself. The
commit takes the times to live away and sets the layout, all in one script.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from curriculum_api.errors import AlreadyExistsError, InvalidRequestError, StateError
from curriculum_server.store.connection import Argument, Redis, store_errors
from curriculum_server.store.inventory import IMPORT, IMPORTED
from curriculum_server.store.keys import RUN_INDEX, RunKeys
from curriculum_server.store.parts import MANIFEST, Manifest

IMPORT_TTL_S = 24 * 3600
"""How long an interrupted import may be taken up again."""
PARTS_PER_SCRIPT = 64
"""Some 16 MB: the store serves nobody else meanwhile."""

# Answers nil if the import may go on.
_MAY_IMPORT = f"""
local function refusal(meta, request_id)
  local state = redis.call('HMGET', meta, 'layout', '{IMPORT}', '{IMPORTED}')
  if state[1] then return state[3] == request_id and 'done' or 'exists' end
  if state[2] then return state[2] ~= request_id and 'other' or nil end
  return redis.call('EXISTS', meta) == 1 and 'deleting' or nil
end
"""

_WRITE = (
    _MAY_IMPORT
    + f"""
local meta, import, request_id, ttl = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local refused = refusal(meta, request_id)
if refused then return refused end
redis.call('HSET', meta, '{IMPORT}', request_id)
for i = 3, #KEYS do
  local name, at, content = ARGV[3 * i - 6], ARGV[3 * i - 5], ARGV[3 * i - 4]
  if KEYS[i] == import then
    redis.call('HSET', import, name, content)
  else
    redis.call('HSET', import, name, #content)
    if content ~= '' then
      redis.call('SETRANGE', KEYS[i], at, content)
      redis.call('EXPIRE', KEYS[i], ttl)
    end
  end
end
redis.call('EXPIRE', import, ttl)
redis.call('EXPIRE', meta, ttl)
return 'ok'
"""
)

_COMMIT = (
    _MAY_IMPORT
    + f"""
local meta, import, deleted, leases, events = unpack(KEYS, 1, 5)
local request_id, doc, policy_step = ARGV[1], ARGV[2], ARGV[3]
local refused = refusal(meta, request_id)
if refused then return refused end
for i = 6, #KEYS do if redis.call('EXISTS', KEYS[i]) == 0 then return 'missing' end end
for i = 6, #KEYS do redis.call('PERSIST', KEYS[i]) end
redis.call('UNLINK', import, deleted, leases, events, meta)
local now = redis.call('TIME')
local now_ms = now[1] .. string.format('%03d', math.floor(now[2] / 1000))
doc = string.gsub(doc, '"create_ms":%-1', '"create_ms":' .. now_ms, 1)
-- Layouts count from the time, so that no layout is that of a deleted run of the same name.
redis.call('HSET', meta, 'doc', doc, 'layout', now_ms, 'seq', '1', 'claims', '0',
  'policy_step', policy_step, '{IMPORTED}', request_id)
for i = 4, #ARGV, 2 do redis.call('HSET', meta, ARGV[i], ARGV[i + 1]) end
redis.call('XADD', events, '*', 'kind', 'created')
return 'ok'
"""
)


@dataclass(frozen=True)
class Part:
    """A piece of a run: its part's name, and where it goes."""

    name: str
    key: str
    at: int
    content: bytes


async def read_pieces(
    redis: Redis, keys: RunKeys, layout: int | None, names: Sequence[str], first: int, stop: int
) -> list[bytes] | None:
    """The bytes [first, stop) of several keys at one moment; None when the run has another layout
    than this by now. A run that is being imported has the layout None."""
    with store_errors():
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hget(keys.meta, "layout")
            for name in names:
                pipe.getrange(name, first, stop - 1)
            found, *pieces = await pipe.execute()
    return pieces if (None if found is None else int(found)) == layout else None


async def write_parts(redis: Redis, keys: RunKeys, request_id: str, parts: Sequence[Part]) -> bool:
    """Keep parts for the import; False when it has made the run already.

    Raises:
        AlreadyExistsError: the run is there, or another import has taken its name.
    """
    for start in range(0, len(parts) or 1, PARTS_PER_SCRIPT):
        some = parts[start : start + PARTS_PER_SCRIPT]
        names = [keys.meta, keys.importing, *(part.key for part in some)]
        args: list[Argument] = [request_id, IMPORT_TTL_S]
        for part in some:
            args += [part.name, part.at, part.content]
        with store_errors():
            reply = await redis.eval(_WRITE, len(names), *names, *args)
        if not _went_on(keys, reply.decode()):
            return False
    return True


async def read_received(redis: Redis, keys: RunKeys) -> tuple[bytes | None, dict[str, int]]:
    """`run.json` if it is there, and the sizes of the parts that are."""
    with store_errors():
        received: Any = await redis.hgetall(keys.importing)
    manifest = received.pop(MANIFEST.encode(), None)
    return manifest, {name.decode(): int(size) for name, size in received.items()}


async def read_sizes(redis: Redis, keys: Iterable[str]) -> list[int]:
    """How long strings are; 0 for one that is not there."""
    with store_errors():
        async with redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.strlen(key)
            return list(await pipe.execute())


async def commit_import(
    redis: Redis, keys: RunKeys, request_id: str, manifest: Manifest, written: Iterable[str]
) -> None:
    """Make the run of the keys that were written. Safe to repeat.

    Raises:
        AlreadyExistsError: the run is there, or another import has taken its name.
        InvalidRequestError: a key is gone by now.
    """
    names = [keys.meta, keys.importing, keys.deleted, keys.leases, keys.events, *written]
    document = replace(manifest.document, create_ms=-1)
    args: list[Argument] = [request_id, document.to_json(), manifest.policy_step]
    for window, (completed, mixed) in manifest.groups.items():
        args += [f"groups:{window}", completed, f"mixed:{window}", mixed]
    with store_errors():
        reply = await redis.eval(_COMMIT, len(names), *names, *args)
    if reply == b"missing":
        raise InvalidRequestError("parts: some are kept no longer; send them again")
    _went_on(keys, reply.decode())
    await list_run(redis, keys)


async def list_run(redis: Redis, keys: RunKeys) -> None:
    """Put the run into the index: a key on another slot, so it is repeated with every commit."""
    with store_errors():
        await redis.zadd(RUN_INDEX, {keys.run_id: 0})


def _went_on(keys: RunKeys, status: str) -> bool:
    """Whether there is more to do; raises what speaks against it."""
    if status in ("ok", "done"):
        return status == "ok"
    if status == "exists":
        raise AlreadyExistsError(f"run_id={keys.run_id!r}: exists; import under another name")
    if status == "other":
        raise AlreadyExistsError(
            f"run_id={keys.run_id!r}: is taken by another import, which is kept for a day; import "
            "under another name, or delete the run to end it"
        )
    raise StateError(f"run_id={keys.run_id!r}: is being deleted; repeat the deletion first")
