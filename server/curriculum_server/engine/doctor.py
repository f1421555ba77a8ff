"""Looking for what the ledger's invariants forbid, page by page. Changes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from curriculum_api.errors import CorruptStateError, NotFoundError
from curriculum_server.engine.check_keys import RESTORE, Shape, check_keys, shape_of
from curriculum_server.engine.check_ledger import check_window
from curriculum_server.engine.check_pool import check_count, check_pool
from curriculum_server.engine.check_run import check_leases, check_meta, check_open_batches
from curriculum_server.engine.check_settings import check_settings
from curriculum_server.engine.findings import Finding, Findings
from curriculum_server.store.commit import list_runs
from curriculum_server.store.connection import Redis
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.looking import is_listed, read_meta, read_raw
from curriculum_server.store.settings import Settings, read_settings

PAGE_S = 5.0
"""After so long a page ends, so that a call stays well within its limit."""
RUNS_PER_PAGE = 100
TRIES = 5
"""A run whose layout changes while it is looked at is looked at again."""


@dataclass
class Page:
    """What one page found."""

    store: str
    findings: list[Finding] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    position: str = ""
    """Where the next one begins, `RUN:WINDOW` behind a window or `RUN:` behind a run; "" at the
    end."""


async def check_page(redis: Redis, run_id: str, position: str) -> Page:
    """Look at one run, or with "" at the store and every run, from a position on.

    Raises:
        NotFoundError: there is no such run, nor a trace of one.
    """
    deadline = time.monotonic() + PAGE_S
    nodes = await read_settings(redis)
    page = Page(", ".join(sorted({str(node) for node in nodes})))
    if not position and not run_id:
        for node in nodes:
            page.findings += _of_node(node)
        if any(finding.kind == "cluster_not_ok" for finding in page.findings):
            return page  # whose keys cannot be read
    if not position:
        page.findings += await check_keys(redis, run_id)
    todo = await _todo(redis, run_id, position)
    for name, behind in todo:
        page.run_ids.append(name)
        stopped = await _check_contents(redis, name, behind, deadline, page.findings)
        page.position = f"{name}:" if stopped is None else f"{name}:{stopped}"
        if stopped is not None or time.monotonic() > deadline:
            break
    else:
        if run_id or len(todo) < RUNS_PER_PAGE:
            page.position = ""
    if run_id and not page.findings and not await _is_there(redis, run_id):
        raise NotFoundError(f"run_id={run_id!r}: there is no such run")
    page.findings.sort(key=lambda finding: not finding.is_error)
    return page


def _of_node(node: Settings) -> list[Finding]:
    findings = Findings()
    check_settings(node, findings)
    where = f"node {node.node}: " if node.node else ""
    return [replace(found, problem=f"{where}{found.problem}") for found in findings.found]


async def _todo(redis: Redis, run_id: str, position: str) -> list[tuple[str, int | None]]:
    """Runs to look at, each with the window to go on behind; None for all of it."""
    run, _, window = position.partition(":")
    begun: list[tuple[str, int | None]] = [(run, int(window))] if window else []
    if run_id:
        return begun if position else [(run_id, None)]
    return begun + [(name, None) for name in await list_runs(redis, run, RUNS_PER_PAGE)]


async def _is_there(redis: Redis, run_id: str) -> bool:
    try:
        return (await read_meta(redis, RunKeys(run_id))).layout is not None
    except CorruptStateError:  # its meta key is no hash
        return True


async def _check_contents(
    redis: Redis, run_id: str, behind: int | None, deadline: float, found: list[Finding]
) -> int | None:
    """Look at a run's contents; gives the window that it came to when time was up."""
    keys, findings = RunKeys(run_id), Findings(run_id)
    stopped = None
    try:
        shape = shape_of(keys, await read_raw(redis, keys))
        if shape.raw.layout is None:
            if not shape.raw.meta and await is_listed(redis, run_id):
                problem = f"cur:runs names the run {run_id}, which is not there"
                remedy = f"{RESTORE}; if it is not wanted, `ZREM cur:runs {run_id}`"
                found.append(Finding(True, "run_missing", run_id, problem, remedy))
            return None
        if behind is None:
            shape = await _check_whole(redis, keys, shape, findings)
        stopped = await _check_windows(redis, keys, shape, behind, deadline, findings)
    except CorruptStateError as error:
        findings.error("unreadable", f"a key of the run cannot be read: {error}", RESTORE)
    if findings.found and await _is_there(redis, run_id):  # else it was deleted meanwhile
        found += findings.found
    return stopped


async def _check_whole(redis: Redis, keys: RunKeys, shape: Shape, findings: Findings) -> Shape:
    """All but the windows; gives the newest shape."""
    for _ in range(TRIES):
        if shape.document is None:
            if shape.problem is not None:
                findings.error(*shape.problem)
            return shape
        some = Findings(keys.run_id)
        check_meta(keys, shape, some)
        await check_leases(redis, keys, shape.raw, shape.document, some)
        await check_open_batches(redis, keys, shape.document, some)
        before, shape = shape, shape_of(keys, await read_raw(redis, keys))
        if not some.found or shape.raw.layout == before.raw.layout:
            findings.take(some)
            break
    if shape.document is not None:
        of_pool = Findings(keys.run_id)
        hashes = await check_pool(redis, keys, shape.document, of_pool)
        check_count(shape.document, hashes, of_pool)
        findings.take(of_pool)
    return shape


async def _check_windows(
    redis: Redis, keys: RunKeys, shape: Shape, behind: int | None, deadline: float, found: Findings
) -> int | None:
    position = -1 if behind is None else behind
    while shape.document is not None and shape.raw.layout is not None:
        windows = [w for w in shape.document.windows if w.window > position]
        if not windows:
            return None
        some = Findings(keys.run_id)
        layout = int(shape.raw.layout)
        if await check_window(redis, keys, layout, shape.document, windows[0], some):
            found.take(some)
            position = windows[0].window
            if time.monotonic() > deadline:
                return position
        else:
            shape = shape_of(keys, await read_raw(redis, keys))
    return None
