"""Which keys are there: of a known kind and type, wanted, and with a time to live where one is
due."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from curriculum_api.errors import CorruptStateError, StateError
from curriculum_server.engine.check_document import document_problems
from curriculum_server.engine.findings import Finding, Findings, shown
from curriculum_server.store.columns import OBJECTIVE, OBJECTIVE_SQ
from curriculum_server.store.connection import Redis
from curriculum_server.store.document import Document
from curriculum_server.store.inventory import Found, Kind, Known, find_keys, look_at
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.looking import RawRun, is_listed, read_meta
from curriculum_server.store.parts import DAMAGE

RESTORE = "restore the store's backup, or import the run's last export under another name"
RECORD_TTL_S = 24 * 3600
NO_HASH = {b"": b""}
SUSPECTS_PER_LOOK = 1_000


@dataclass(frozen=True)
class Shape:
    """Which keys a run may have."""

    raw: RawRun
    document: Document | None
    """None when it cannot be read."""
    problem: tuple[str, str, str] | None = None
    """(kind, problem, remedy) of a document that cannot be read."""


def shape_of(keys: RunKeys, raw: RawRun) -> Shape:
    """The run's shape, from its meta hash."""
    if raw.layout is None:
        return Shape(raw, None)
    if not raw.layout.isdigit():
        said = f"{shown(keys.meta)} layout={raw.layout!r}: must be a whole number"
        return Shape(raw, None, ("meta_broken", said, RESTORE))
    try:
        document = Document.from_json(raw.meta[b"doc"])
    except StateError as error:
        remedy = "use a server of the version that wrote it, or a newer one"
        return Shape(raw, None, ("schema_unknown", f"{shown(keys.meta)} doc: {error}", remedy))
    except DAMAGE as error:
        said = f"{shown(keys.meta)} doc: cannot be read: {error!r}"
        return Shape(raw, None, ("document_broken", said, RESTORE))
    problems = document_problems(document)
    if problems:
        said = f"{shown(keys.meta)} doc: {'; '.join(problems[:5])}"
        return Shape(raw, None, ("document_broken", said, RESTORE))
    return Shape(raw, document)


async def check_keys(redis: Redis, run_id: str) -> list[Finding]:
    """Look at every key of one run, or with "" of all runs."""
    shapes: dict[str, Shape] = {}
    suspects: dict[bytes, None] = {}
    async for batch in find_keys(redis, run_id):
        for found in batch:
            if _judged(found, await _shape(redis, shapes, found.run_id)) is not None:
                suspects[found.key] = None  # a scan may name a key twice
        await asyncio.sleep(0)
    # Runs went on meanwhile: only what is still there with a shape read since is amiss.
    known, shapes = sorted(shapes), {}
    for name in known:
        await _shape(redis, shapes, name)
    collected = {name: Findings(name) for name in known}
    again = list(suspects)
    for start in range(0, len(again), SUSPECTS_PER_LOOK):
        for found in await look_at(redis, again[start : start + SUSPECTS_PER_LOOK]):
            judged = _judged(found, shapes[found.run_id])
            if judged is not None:
                collected[found.run_id].error(*judged)
    for name in known:
        await _check_presence(redis, await _shape(redis, shapes, name), collected[name])
    return [finding for findings in collected.values() for finding in findings.found]


async def _shape(redis: Redis, shapes: dict[str, Shape], run_id: str) -> Shape:
    if run_id not in shapes:
        keys = RunKeys(run_id)
        try:
            raw = await read_meta(redis, keys)
        except CorruptStateError:  # it is no hash, which its own finding says
            raw = RawRun(NO_HASH, 0, (), 0)
        shapes[run_id] = shape_of(keys, raw)
    return shapes[run_id]


async def _check_presence(redis: Redis, shape: Shape, findings: Findings) -> None:
    run_id, raw = findings.run_id, shape.raw
    if raw.layout is not None and await _is_unlisted(redis, run_id):
        problem = f"cur:runs does not name the run {run_id}, so that it is in no list"
        findings.error("run_not_listed", problem, f"`ZADD cur:runs 0 {run_id}`")
    if raw.is_importing:
        findings.warning(
            "import_unfinished",
            "the run is being imported, or its import was interrupted",
            "repeat the import; if nobody does, it goes by itself within a day, or at once with: "
            f"curriculum runs delete {run_id} --yes",
        )
    elif raw.layout is None and raw.meta and raw.meta != NO_HASH:
        findings.error(
            "run_incomplete",
            f"{shown(RunKeys(run_id).meta)} has no layout: the run is being deleted, or its "
            "deletion was interrupted",
            f"if it stays so, repeat it: curriculum runs delete {run_id} --yes",
        )


async def _is_unlisted(redis: Redis, run_id: str) -> bool:
    """A run is made and listed by two commands, and unmade by two; so it is asked twice."""
    for _ in range(2):
        if await is_listed(redis, run_id):
            return False
        if (await read_meta(redis, RunKeys(run_id))).layout is None:
            return False
    return True


def _judged(found: Found, shape: Shape) -> tuple[str, str, str] | None:
    """(kind, problem, remedy) if the key should not be as it is."""
    key, known, unlink = shown(found.key), found.known, f"`UNLINK {shown(found.key)}`"
    if known is None:
        problem = f"{key} is a {found.redis_type} of no known kind"
        return "key_unknown", problem, f"if no newer server wrote it: {unlink}"
    if found.redis_type != known.kind.redis_type:
        problem = f"{key} is a {found.redis_type}: must be a {known.kind.redis_type}"
        return "key_of_wrong_type", problem, RESTORE
    if not known.kind.permanent:
        if found.ttl_s == -1:
            problem = f"{key} has no time to live and would never go"
            return "key_without_ttl", problem, f"`EXPIRE {key} {RECORD_TTL_S}`"
        return None
    if shape.raw.layout is None:
        if shape.raw.meta:
            return None  # the whole run is not there, which is said of the run
        problem = f"{key} belongs to no run: {shown(RunKeys(found.run_id).meta)} is missing"
        return "key_orphaned", problem, f"{RESTORE}; if the run is not wanted, {unlink}"
    if found.ttl_s >= 0:
        problem = f"{key} goes in {found.ttl_s} s, though it is part of the run"
        return "key_with_ttl", problem, f"`PERSIST {key}`"
    if shape.document is None:
        return None
    return _orphaned(key, known, shape.document)


def _orphaned(key: str, known: Known, document: Document) -> tuple[str, str, str] | None:
    """A key that the document does not speak of."""
    unlink = f"`UNLINK {key}`"
    if known.kind is Kind.COLUMN:
        if known.number not in {window.window for window in document.windows}:
            problem = f"{key} is of window {known.number}, which the run does not have"
            return "column_orphaned", problem, unlink
        if known.column not in document.column_names:
            channel = json.dumps(known.column.removeprefix("ch:"))
            of = f"the channel {channel}, which the run does not declare"
            if known.column in (OBJECTIVE, OBJECTIVE_SQ):
                of = "an objective, which the run does not have"
            return "column_orphaned", f"{key} is of {of}", unlink
    if known.kind in (Kind.CATALOG, Kind.PAYLOAD) and known.number >= document.chunk_count:
        problem = f"{key} is behind the pool's {document.chunk_count} chunks"
        return "chunk_orphaned", problem, unlink
    if known.kind is Kind.EMBEDDING and known.number >= document.embedding_chunk_count:
        count = document.embedding_chunk_count
        problem = f"{key} is behind the pool's {count} chunks of embeddings"
        return "embedding_chunk_orphaned", problem, unlink
    if known.kind is Kind.OPEN_BATCHES and known.number not in document.kept_batches:
        problem = f"{key} is of a checkpoint that is kept no longer"
        return "open_batches_orphaned", problem, unlink
    return None
