"""Exporting a run as parts, and importing one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from curriculum_api.errors import (
    ConflictError,
    CorruptStateError,
    InvalidRequestError,
    NotFoundError,
)
from curriculum_api.limits import MAX_POLICY_STEP
from curriculum_server.engine.check_document import document_problems
from curriculum_server.engine.check_ledger import check_window
from curriculum_server.engine.check_pool import check_count, check_pool
from curriculum_server.engine.check_run import MAX_GROUPS, check_open_batches
from curriculum_server.engine.findings import Findings
from curriculum_server.store.connection import Redis
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.load import Header, load_header
from curriculum_server.store.parts import (
    MANIFEST,
    PIECE_BYTES,
    Item,
    Manifest,
    items,
    key_sizes,
    locate,
    part_names,
)
from curriculum_server.store.transfer import (
    Part,
    commit_import,
    list_run,
    read_pieces,
    read_received,
    read_sizes,
    write_parts,
)

PAGE_BYTES = 1 << 21
"""A page ends behind the read that brings it here; with all channels one is 5 MB."""
PAGE_S = 5.0
MAX_PARTS = 4096


@dataclass(frozen=True)
class Position:
    """Where an export has come to: the layout that it reads, the item and the place in it."""

    layout: int
    item: int = 0
    at: int = 0

    def __str__(self) -> str:
        return f"{self.layout}.{self.item}.{self.at}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Back from `str`, of a text that has its form."""
        return cls(*map(int, text.split(".")))


@dataclass
class ExportPage:
    """Parts, and where the next page begins; None at the end."""

    parts: list[tuple[str, bytes]] = field(default_factory=list)
    next: Position | None = None


async def export_page(redis: Redis, run_id: str, position: Position | None) -> ExportPage:
    """A page of the run. Reads the store, not the mirror: a run is exported by any server, loaded
    or not, and costs it no memory.

    Raises:
        NotFoundError: there is no such run.
        ConflictError: its layout is another one by now.
        CorruptStateError: a part of it is missing.
    """
    keys = RunKeys(run_id)
    header = await load_header(redis, keys)
    if header is None:
        raise NotFoundError(f"run_id={run_id!r}: there is no such run")
    at = position or Position(header.layout)
    if at.layout != header.layout:
        raise _changed(run_id)
    todo = items(keys, header.document)
    page, size, deadline = ExportPage(), 0, time.monotonic() + PAGE_S
    while at.item < len(todo):
        if size >= PAGE_BYTES or time.monotonic() > deadline:
            page.next = at
            return page
        parts, at = await _read(redis, keys, todo[at.item], at)
        page.parts += parts
        size += sum(len(name) + len(content) for name, content in parts)
    # Last, so that its counters hold every report that the columns hold.
    page.parts.append((MANIFEST, await _manifest(redis, keys, header)))
    return page


async def _read(
    redis: Redis, keys: RunKeys, item: Item, at: Position
) -> tuple[list[tuple[str, bytes]], Position]:
    """One piece of each of the item's keys, read at one moment, and the position behind it."""
    done = Position(at.layout, at.item + 1)
    if item.byte_count is not None and at.at >= item.byte_count:
        return [], done
    stop = at.at + PIECE_BYTES
    if item.byte_count is not None:
        stop = min(stop, item.byte_count)
    pieces = await read_pieces(redis, keys, at.layout, [key for _, key in item.keys], at.at, stop)
    if pieces is None:
        raise _changed(keys.run_id)
    if at.at == 0 and not pieces[0] and item.required:
        raise CorruptStateError(f"{item.keys[0][1]} is missing; see `curriculum doctor`")
    is_last = len(pieces[0]) < PIECE_BYTES if item.byte_count is None else stop == item.byte_count
    behind = done if is_last else Position(at.layout, at.item, at.at + PIECE_BYTES)
    return part_names(item, at.at, pieces), behind


async def _manifest(redis: Redis, keys: RunKeys, before: Header) -> bytes:
    header = await load_header(redis, keys)
    if header is None or header.layout != before.layout:
        raise _changed(keys.run_id)
    return Manifest(header.document, header.policy_step, header.groups, PIECE_BYTES).encode()


async def import_parts(
    redis: Redis, run_id: str, request_id: str, parts: Sequence[tuple[str, bytes]], commit: bool
) -> bool:
    """Keep parts; with `commit` make the run of all that were kept. Safe to repeat. Gives whether
    the run is there now.

    Raises:
        AlreadyExistsError: the run is there, or another import has taken its name.
        InvalidRequestError: a part that is none; or on the commit, one that is missing or damaged.
    """
    if len(parts) > MAX_PARTS:
        raise InvalidRequestError(f"len(parts)={len(parts)}: must be in [0, {MAX_PARTS}]")
    keys = RunKeys(run_id)
    located = []
    for name, content in parts:
        if name == MANIFEST:
            Manifest.decode(content)
            located.append(Part(name, keys.importing, 0, content))
        else:
            located.append(Part(name, *locate(keys, name, len(content)), content))
    if not await write_parts(redis, keys, request_id, located):
        await list_run(redis, keys)
        return True
    if commit:
        await _commit(redis, keys, request_id)
    return commit


async def _commit(redis: Redis, keys: RunKeys, request_id: str) -> None:
    content, sizes = await read_received(redis, keys)
    if content is None:
        if not await write_parts(redis, keys, request_id, []):
            return  # another commit of this import was faster
        raise InvalidRequestError(f"parts.name={MANIFEST!r}: is missing")
    manifest = Manifest.decode(content)
    problems = document_problems(manifest.document) or _counter_problems(manifest)
    if problems:
        raise InvalidRequestError(f"parts.name={MANIFEST!r}: {'; '.join(problems[:5])}")
    expected = key_sizes(keys, manifest, sizes)
    for key, size in zip(expected, await read_sizes(redis, expected), strict=True):
        if size != expected[key]:
            raise InvalidRequestError(f"parts: {key} has {size} bytes: must be {expected[key]}")
    await _check(redis, keys, manifest)
    await commit_import(redis, keys, request_id, manifest, expected)


async def _check(redis: Redis, keys: RunKeys, manifest: Manifest) -> None:
    """Refuse what would be a damaged run."""
    document, findings = manifest.document, Findings(keys.run_id)
    check_count(document, await check_pool(redis, keys, document, findings), findings)
    await check_open_batches(redis, keys, document, findings)
    for window in document.windows:
        if not await check_window(redis, keys, None, document, window, findings):
            return  # a repeat of the commit was faster, as this one is going to find
    for finding in findings.found:
        if finding.is_error:
            raise InvalidRequestError(f"parts: {finding.problem}")


def _counter_problems(manifest: Manifest) -> list[str]:
    windows = {window.window for window in manifest.document.windows}
    problems = [
        f"groups[{window}]={counts}: must be of a window that is there, at most {MAX_GROUPS}, and "
        "the mixed at most all"
        for window, counts in manifest.groups.items()
        if window not in windows or not 0 <= counts[1] <= counts[0] <= MAX_GROUPS
    ]
    if not 0 <= manifest.policy_step <= MAX_POLICY_STEP:
        problems.append(f"policy_step={manifest.policy_step}: must be in [0, {MAX_POLICY_STEP}]")
    return problems


def _changed(run_id: str) -> ConflictError:
    return ConflictError(
        f"run_id={run_id!r}: its windows, pool or checkpoints changed since the first page; begin "
        "anew"
    )
