"""From reported attempts to counts, and giving batches back."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np

from curriculum_api.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    StateError,
)
from curriculum_server.engine.counting import (
    Attempts,
    advance_batch,
    count_deltas,
    leased_for_probes,
    leased_for_reference,
)
from curriculum_server.engine.run import Run
from curriculum_server.store import batches
from curriculum_server.store.batches import OpenBatch
from curriculum_server.store.reports import (
    Deltas,
    Receipt,
    ReportReply,
    load_report,
    report,
)
from curriculum_server.store.windows import Window

REPORT_TRIES = 256
"""Each try that misses is another server's report that hit; a try costs about a millisecond."""
KEPT_BATCHES = 256
"""Batches whose slots are kept in memory per run: what is in flight, with room."""


@dataclass(frozen=True)
class ReportRequest:
    """One report."""

    request_id: str
    batch_id: str
    timeline: int
    policy_step: int
    attempts: Attempts
    digest: bytes


class Batch:
    """A batch on this server. `lock` orders the reports that come through here, so that each finds
    the progress of the one before."""

    def __init__(self, state: OpenBatch) -> None:
        self.state = state
        self.lock = asyncio.Lock()


class BatchCache:
    """The newest batches of a run."""

    def __init__(self) -> None:
        self._batches: OrderedDict[tuple[int, int, str], Batch] = OrderedDict()

    async def get(self, run: Run, timeline: int, batch_id: str) -> Batch:
        """The batch.

        Raises:
            NotFoundError: it was never made, or is kept no longer.
        """
        key = (run.mirror.document.create_ms, timeline, batch_id)
        if key not in self._batches:
            state = await batches.load_batch(run.redis, run.keys, timeline, batch_id)
            if state is None:
                async with run.lock:
                    await run.sync()  # says so if it is the run that is gone
                raise _no_batch(batch_id, timeline)
            self._batches.setdefault(key, Batch(state))
        self._batches.move_to_end(key)
        while len(self._batches) > KEPT_BATCHES:
            self._batches.popitem(last=False)
        return self._batches[key]


async def report_outcomes(run: Run, cache: BatchCache, request: ReportRequest) -> Receipt:
    """Count every attempt of the report once, or refuse all of it."""
    if not run.is_loaded or request.timeline > run.mirror.document.timeline:
        async with run.lock:
            await run.sync()
    run.check_timeline(request.timeline)
    batch = await cache.get(run, request.timeline, request.batch_id)
    async with batch.lock:
        for _ in range(REPORT_TRIES):
            run.check_timeline(request.timeline)
            reply = await _try_report(run, batch, request)
            if reply.status in ("ok", "seen", "missing"):
                return _accepted(request, reply)
            if reply.status in ("stale", "gone"):
                async with run.lock:
                    await run.sync()
                # Another one if the run was deleted and made again.
                batch = await cache.get(run, request.timeline, request.batch_id)
    raise run.overtaken()


async def _try_report(run: Run, batch: Batch, request: ReportRequest) -> ReportReply:
    """One go at counting; keeps up with how far the batch has come."""
    state, config = batch.state, run.mirror.config
    for_reference = _check_reference(request, state)
    step = run.counting_step(request.policy_step, for_reference=for_reference)
    try:
        deltas = count_deltas(request.attempts, state.record, config)
    except InvalidRequestError:
        if await _refresh(run, batch):
            return ReportReply("other")
        raise
    advance = advance_batch(state, deltas)
    window = run.open_window(step)
    if advance is None or window is None:
        seen = await _counted_before(run, request)
        if seen is not None:
            return seen
    if advance is None:
        if await _refresh(run, batch):
            return ReportReply("moved")
        raise _too_many(state, deltas)
    if window is None:
        window = await _opened_window(run, request.timeline, step)
    if window is None:
        return ReportReply("stale")
    reply = await report(
        run.redis,
        run.keys,
        state,
        deltas,
        advance,
        request_id=request.request_id,
        digest=request.digest,
        layout=run.mirror.layout,
        window=window.window,
        policy_step=request.policy_step,
        ttl_s=2 * config.lease_ttl_s + batches.RECORD_GRACE_S,
    )
    if reply.status == "ok":
        run.note_event(reply.seq)
        batch.state = replace(state, progress_B=advance.after_B)
    elif reply.status == "other":
        await _refresh(run, batch)
    elif reply.progress_B is not None:
        batch.state = replace(state, progress_B=reply.progress_B)
    return reply


async def _counted_before(run: Run, request: ReportRequest) -> ReportReply | None:
    """What comes too often or too late may be a repeat of what was counted; but no script compares
    the layout here, and what was counted may have been rolled back since."""
    async with run.lock:
        await run.sync()
    run.check_timeline(request.timeline)
    return await load_report(run.redis, run.keys, request.timeline, request.request_id)


def _check_reference(request: ReportRequest, batch: OpenBatch) -> bool:
    """Whether the batch was leased for the reference policy, whose step the report then names."""
    for_reference = leased_for_reference(batch.record)
    if for_reference and request.policy_step:
        raise InvalidRequestError(
            f"policy_step={request.policy_step}: must be 0: batch {batch.record.batch_id!r} was "
            "leased for the reference policy"
        )
    return for_reference


async def _opened_window(run: Run, timeline: int, step: int) -> Window | None:
    """The window that the report's counts go to. A rollback, which is refused, or another run of
    that name may have come while this waited; the layout is then the new one, and this None."""
    created_ms = run.mirror.document.create_ms
    async with run.lock:
        window = await run.window_for(step, timeline)
        run.check_timeline(timeline)
        return window if run.mirror.document.create_ms == created_ms else None


async def _refresh(run: Run, batch: Batch) -> bool:
    """Read the batch again; whether it had changed."""
    record, before = batch.state.record, batch.state
    state = await batches.load_batch(run.redis, run.keys, record.timeline, record.batch_id)
    if state is None:
        raise _no_batch(record.batch_id, record.timeline)
    batch.state = state
    return state.born != before.born or not np.array_equal(state.progress_B, before.progress_B)


def _too_many(batch: OpenBatch, deltas: Deltas) -> StateError:
    """Names the first slot that does not take as many attempts."""
    slots = batch.record.slots
    for slot, came in zip(deltas.slot_B.tolist(), deltas.attempts_B.tolist(), strict=True):
        allotted, before = int(slots["attempt_count"][slot]), int(batch.progress_B[slot])
        closed, reported = divmod(before, batches.CLOSED)
        if closed or (reported >> 16) + came > allotted:
            break
    why = f"; {_closed_by(batch, reported >> 16 >= allotted)}" if closed else ""
    return StateError(
        f"outcomes.slots={slot}: must be given at most {allotted} attempts; "
        f"{reported >> 16} are reported and {came} came{why}"
    )


def _closed_by(batch: OpenBatch, is_full: bool) -> str:
    """Names the likely cause too: two trainings whose requests have the same names are given the
    same batches."""
    before = "reported in full" if is_full else "released"
    return (
        f"the slot is closed: it was {before} before, in batch {batch.record.batch_id!r}: a "
        "training that starts anew needs a run of its own, a resumed one load_state_dict"
    )


def report_digest(content: bytes) -> bytes:
    """16 bytes that differ when a report's content differs."""
    return hashlib.blake2b(content, digest_size=16).digest()


async def release_batch(run: Run, cache: BatchCache, timeline: int, batch_id: str) -> int:
    """Free the batch's unreported prompts; how many were freed."""

    async def release(batch: OpenBatch) -> tuple[str, int]:
        status = await batches.release(run.redis, run.keys, batch, run.mirror.layout)
        return status, int((batch.progress_B < batches.CLOSED).sum())

    return await _change_leases(run, cache, timeline, batch_id, release)


async def renew_batch(run: Run, cache: BatchCache, timeline: int, batch_id: str) -> tuple[int, int]:
    """Extend the batch's leases: (prompts still held, second at which they run out).

    Leases that have run out are not taken back, since others may have the prompts by now.
    """
    held = 0

    async def renew(batch: OpenBatch) -> tuple[str, int]:
        nonlocal held
        config = run.mirror.config
        ttl_s = config.probe_lease_s if leased_for_probes(batch.record) else config.lease_ttl_s
        status, expire_s = await batches.renew(run.redis, run.keys, batch, run.mirror.layout, ttl_s)
        held = 0 if status == "expired" else int((batch.progress_B < batches.CLOSED).sum())
        return status, expire_s

    expire_s = await _change_leases(run, cache, timeline, batch_id, renew)
    return held, expire_s


async def _change_leases(
    run: Run,
    cache: BatchCache,
    timeline: int,
    batch_id: str,
    change: Callable[[OpenBatch], Awaitable[tuple[str, int]]],
) -> int:
    async with run.lock:
        await run.sync()
    run.check_timeline(timeline)
    batch = await cache.get(run, timeline, batch_id)
    async with batch.lock:
        for _ in range(REPORT_TRIES):
            await _refresh(run, batch)
            run.check_timeline(timeline)
            status, value = await change(batch.state)
            if status == "missing":
                raise _no_batch(batch_id, timeline)
            if status == "stale":
                async with run.lock:
                    await run.sync()
            elif status != "moved":
                return value
    raise run.overtaken()


def _accepted(request: ReportRequest, reply: ReportReply) -> Receipt:
    if reply.status == "missing":
        raise _no_batch(request.batch_id, request.timeline)
    if reply.status == "seen" and reply.digest != request.digest:
        raise AlreadyExistsError(
            f"request_id={request.request_id!r}: was used with other content; "
            "a new report needs a new request_id"
        )
    return reply.receipt


def _no_batch(batch_id: str, timeline: int) -> NotFoundError:
    return NotFoundError(
        f"batch_id={batch_id!r}: there is no such batch on timeline {timeline}; "
        "it was never made or is kept no longer"
    )
