"""Composing and leasing a batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from curriculum import Selection, compose_batch, select_probes
from curriculum_api.errors import AlreadyExistsError, ConflictError
from curriculum_server.engine.run import Run
from curriculum_server.store.batches import SLOT_DTYPE, BatchRecord, claim

CLAIM_TRIES = 5


@dataclass(frozen=True)
class BatchRequest:
    """What a trainer or prober asks for."""

    request_id: str
    prompt_count: int
    policy_step: int
    timeline: int | None
    attempt_count: int | None = None
    """Attempts per prompt of a probe; None for the run's group size."""
    probe: bool = False

    def digest(self) -> bytes:
        content = (self.probe, self.prompt_count, self.policy_step, self.attempt_count)
        return hashlib.blake2b(repr(content).encode(), digest_size=16).digest()


async def next_batch(run: Run, request: BatchRequest) -> BatchRecord:
    """The request's batch: the one it got before, or a new one.

    Raises:
        AlreadyExistsError: the request_id was used for another request.
        ConflictError: the caller is on an older timeline.
        InvalidRequestError: a policy step that cannot be meant.
    """
    async with run.lock:
        for attempt in range(CLAIM_TRIES):
            # Mostly the mirror is up to date and one trip is enough; the store tells if not. Under
            # a steady stream of reports it never is, so the last tries take the choice as made.
            if attempt or not run.is_loaded:
                await run.sync()
            record = await _try_claim(run, request, fresh=attempt < CLAIM_TRIES // 2)
            if record is not None:
                return _same_request(request, record)
    raise ConflictError(
        f"request_id={request.request_id!r}: other callers took the prompts {CLAIM_TRIES} times; "
        "ask again"
    )


async def _try_claim(run: Run, request: BatchRequest, *, fresh: bool) -> BatchRecord | None:
    """One go at composing and leasing; None when it must be repeated after reading again."""
    if request.timeline is not None and request.timeline != run.mirror.document.timeline:
        await run.sync()
        run.check_timeline(request.timeline)
    run.check_step(request.policy_step)
    window = await run.window_for(request.policy_step)
    mirror = run.mirror
    selection = await _compose(run, request)
    record = BatchRecord(
        request.request_id,
        mirror.document.timeline,
        request.policy_step,
        request.digest(),
        _slots(selection),
        selection.shortfall,
    )
    reply = await claim(
        run.redis,
        run.keys,
        record,
        layout=mirror.layout,
        seq=mirror.seq if fresh else None,
        window=window.window,
        ttl_s=mirror.config.lease_ttl_s,
        mark_served=not request.probe,
    )
    if reply.status == "busy":
        mirror.lease_N[reply.busy[:, 0]] = reply.busy[:, 1]
    return reply.record if reply.status in ("ok", "known") else None


async def _compose(run: Run, request: BatchRequest) -> Selection:
    config = run.mirror.config
    pool, prepared = await run.pool(request.policy_step)
    rng = _generator(config.seed, request.request_id)
    if request.probe:
        attempts = request.attempt_count or config.selection.group_size
        return select_probes(prepared, pool, request.prompt_count, attempts, rng)
    return compose_batch(prepared, pool, config.selection, request.prompt_count, rng)


def _generator(seed: int, request_id: str) -> np.random.Generator:
    """All randomness of a batch, from the run's seed and the request's name alone."""
    digest = hashlib.blake2b(f"{seed}/{request_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))


def _slots(selection: Selection) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    slots = np.zeros(len(selection.indices_B), SLOT_DTYPE)
    slots["index"] = selection.indices_B
    slots["attempt_count"] = selection.attempt_counts_B
    slots["reason"] = selection.reasons_B
    slots["pass_rate"] = selection.pass_rate_B
    slots["pass_rate_low"] = selection.pass_rate_low_B
    slots["pass_rate_high"] = selection.pass_rate_high_B
    return slots


def _same_request(request: BatchRequest, record: BatchRecord) -> BatchRecord:
    if record.digest != request.digest():
        raise AlreadyExistsError(
            f"request_id={request.request_id!r}: was used with other content; "
            "a new batch needs a new request_id"
        )
    return record
