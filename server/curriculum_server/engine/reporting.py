"""From reported attempts to counts, and giving batches back."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curriculum_api.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    StateError,
)
from curriculum_server.engine.config import RunConfig
from curriculum_server.engine.run import Run
from curriculum_server.store import batches, columns
from curriculum_server.store.batches import BatchRecord
from curriculum_server.store.reports import Deltas, Receipt, ReportReply, report

REPORT_TRIES = 8
KEPT_BATCHES = 256
"""Batches whose slots are kept in memory per run: what is in flight, with room."""
_CLOSED = 1 << 15


@dataclass(frozen=True)
class Attempts:
    """Reported attempts as columns of K rows.

    tokens_K is None when no token counts were given.
    """

    slots_K: NDArray[np.int64]
    rewards_K: NDArray[np.float32]
    tokens_K: NDArray[np.int64] | None
    channels: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ReportRequest:
    """One report."""

    request_id: str
    batch_id: str
    timeline: int
    policy_step: int
    attempts: Attempts
    digest: bytes


class BatchCache:
    """The newest batches' records: they never change but for their expiry."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[int, str], BatchRecord] = OrderedDict()

    async def get(self, run: Run, timeline: int, batch_id: str) -> BatchRecord:
        """The batch.

        Raises:
            NotFoundError: it was never made, or is kept no longer.
        """
        key = (timeline, batch_id)
        record = self._records.get(key)
        if record is None:
            record = await batches.load_batch(run.redis, run.keys, timeline, batch_id)
        if record is None:
            raise _no_batch(batch_id, timeline)
        self._records[key] = record
        self._records.move_to_end(key)
        while len(self._records) > KEPT_BATCHES:
            self._records.popitem(last=False)
        return record


async def report_outcomes(run: Run, cache: BatchCache, request: ReportRequest) -> Receipt:
    """Count every attempt of the report once, or refuse all of it."""
    if not run.is_loaded:
        async with run.lock:
            await run.sync()
    for _ in range(REPORT_TRIES):
        run.check_timeline(request.timeline)
        record = await cache.get(run, request.timeline, request.batch_id)
        deltas = count_deltas(request.attempts, record, run.mirror.config)
        run.check_step(request.policy_step)
        window = run.mirror.document.window_for(request.policy_step)
        if window is None:
            async with run.lock:
                window = await run.window_for(request.policy_step)
        reply = await report(
            run.redis,
            run.keys,
            record,
            deltas,
            request_id=request.request_id,
            digest=request.digest,
            layout=run.mirror.layout,
            window=window.window,
            policy_step=request.policy_step,
            ttl_s=2 * run.mirror.config.lease_ttl_s + batches.RECORD_GRACE_S,
        )
        if reply.status not in ("stale", "gone"):
            return _accepted(request, record, reply)
        async with run.lock:
            await run.sync()
    raise OverloadedError(f"run_id={run.run_id!r}: is changed by too many callers at once")


def report_digest(content: bytes) -> bytes:
    """16 bytes that differ when a report's content differs."""
    return hashlib.blake2b(content, digest_size=16).digest()


def count_deltas(attempts: Attempts, record: BatchRecord, config: RunConfig) -> Deltas:
    """What the attempts add to the ledger.

    Raises:
        InvalidRequestError: a slot, reward or channel value that is not allowed.
    """
    slot_count = len(record.slots)
    slots_K = attempts.slots_K
    if slots_K.max(initial=-1) >= slot_count:
        row = int(np.argmax(slots_K >= slot_count))
        raise InvalidRequestError(
            f"outcomes.slots[{row}]={slots_K[row]}: must be in [0, {slot_count - 1}] "
            f"in batch {record.batch_id!r}"
        )
    low, high = np.float32(config.reward_min), np.float32(config.reward_max)
    _check_range("outcomes.rewards", attempts.rewards_K, low, high)
    passed_K = attempts.rewards_K >= np.float32(config.pass_threshold)
    position_K = (attempts.rewards_K.astype(np.float64) - low) / (float(high) - float(low))
    amounts_K = {
        columns.ATTEMPTS: np.ones(len(slots_K)),
        columns.PASSES: passed_K.astype(np.float64),
        columns.REWARD_EXCESS: _fixed_point(position_K - passed_K),
        columns.REWARD_SQ_EXCESS: _fixed_point(position_K**2 - passed_K),
    }
    if attempts.tokens_K is not None:
        amounts_K[columns.TOKENS] = attempts.tokens_K.astype(np.float64)
    for name, values_K in attempts.channels.items():
        amounts_K[columns.channel(name)] = _channel_position(name, values_K, config)
    sums = {n: np.bincount(slots_K, a, slot_count).astype(np.int64) for n, a in amounts_K.items()}
    used_B = np.flatnonzero(sums[columns.ATTEMPTS])
    return Deltas(
        slot_B=used_B,
        index_B=record.slots["index"][used_B].astype(np.int64),
        attempts_B=sums[columns.ATTEMPTS][used_B],
        passes_B=sums[columns.PASSES][used_B],
        columns={name: amounts_B[used_B] for name, amounts_B in sums.items()},
    )


async def release_batch(run: Run, timeline: int, batch_id: str) -> int:
    """Free the batch's unreported prompts; how many were freed."""
    record = await _held_batch(run, timeline, batch_id)
    freed = await batches.release(run.redis, run.keys, record)
    if freed is None:
        raise _no_batch(batch_id, timeline)
    return freed


async def renew_batch(run: Run, timeline: int, batch_id: str) -> tuple[int, int]:
    """Extend the batch's leases: (prompts still held, second at which they run out)."""
    record = await _held_batch(run, timeline, batch_id)
    renewed = await batches.renew(run.redis, run.keys, record, run.mirror.config.lease_ttl_s)
    if renewed is None:
        raise _no_batch(batch_id, timeline)
    return renewed


async def _held_batch(run: Run, timeline: int, batch_id: str) -> BatchRecord:
    async with run.lock:
        await run.sync()
    run.check_timeline(timeline)
    record = await batches.load_batch(run.redis, run.keys, timeline, batch_id)
    if record is None:
        raise _no_batch(batch_id, timeline)
    return record


def _accepted(request: ReportRequest, record: BatchRecord, reply: ReportReply) -> Receipt:
    if reply.status == "missing":
        raise _no_batch(request.batch_id, request.timeline)
    if reply.status == "over":
        allotted = int(record.slots["attempt_count"][reply.slot])
        counts = f"{reply.reported % _CLOSED} of {allotted} attempts are reported"
        closed = " and the slot is closed" if reply.reported >= _CLOSED else ""
        raise StateError(
            f"outcomes.slots={reply.slot}: takes no more than {allotted} attempts; {counts}{closed}"
        )
    if reply.status == "seen" and reply.digest != request.digest:
        raise AlreadyExistsError(
            f"request_id={request.request_id!r}: was used with other content; "
            "a new report needs a new request_id"
        )
    return reply.receipt


def _channel_position(
    name: str, values_K: NDArray[np.float32], config: RunConfig
) -> NDArray[np.float64]:
    declared = {channel.name: channel for channel in config.channels}
    if name not in declared:
        allowed = ", ".join(declared) or "none: the run declares no channels"
        raise InvalidRequestError(f"outcomes.channels[{name}]: must be one of {allowed}")
    low, high = declared[name].min_value, declared[name].max_value
    _check_range(f"outcomes.channels[{name}].values", values_K, np.float32(low), np.float32(high))
    return _fixed_point((values_K.astype(np.float64) - low) / (high - low))


def _check_range(
    name: str, values_K: NDArray[np.float32], low: np.float32, high: np.float32
) -> None:
    bad_K = ~((values_K >= low) & (values_K <= high))  # catches NaN as well
    if bad_K.any():
        row = int(np.argmax(bad_K))
        raise InvalidRequestError(
            f"{name}[{row}]={values_K[row]:g}: must be in [{low:g}, {high:g}]"
        )


def _fixed_point(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.rint(values * columns.FIXED_POINT_SCALE)


def _no_batch(batch_id: str, timeline: int) -> NotFoundError:
    return NotFoundError(
        f"batch_id={batch_id!r}: there is no such batch on timeline {timeline}; "
        "it was never made or is kept no longer"
    )
