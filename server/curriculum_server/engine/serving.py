"""Leasing batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curriculum_api.errors import AlreadyExistsError, InvalidRequestError, OverloadedError
from curriculum_api.limits import MAX_MESSAGE_BYTES
from curriculum_server.engine.composing import BatchRequest, Composer
from curriculum_server.engine.encoding import encode_prompts
from curriculum_server.engine.probing import why_no_probes
from curriculum_server.engine.run import Run
from curriculum_server.store.batches import SLOT_DTYPE, BatchRecord, claim, load_batch

MAX_PROMPTS_BYTES = MAX_MESSAGE_BYTES - 64 * 1024
"""What a batch's prompts may have; the rest of its message is small."""
CLAIM_TRIES = 20
FRESH_TRIES = 2
"""Tries that insist on having seen every event; later ones insist on the leases alone, since under
a steady stream of reports the newest event is never seen."""


@dataclass(frozen=True)
class ServedBatch:
    """A leased batch, and its prompts encoded as those of a `Batch` message."""

    record: BatchRecord
    prompts: bytes
    is_new: bool
    """Whether this call made it."""


async def next_batch(run: Run, composer: Composer, request: BatchRequest) -> ServedBatch:
    """The request's batch: the one it got before, or a new one.

    Raises:
        AlreadyExistsError: the request_id was used for another request.
        ConflictError: the caller is on an older timeline.
        OverloadedError: others leased prompts between every try; the call may be repeated.
        InvalidRequestError: a policy step that cannot be meant.
    """
    async with run.lock:
        for attempt in range(CLAIM_TRIES):
            # Mostly the mirror is up to date and one trip is enough; the store tells if not.
            if attempt or run.is_behind:
                await run.sync()
            if request.probe and why_no_probes(run, request):
                batch = await _without_probes(run, request)
                if batch is not None:
                    return batch
            batch = await _try_claim(run, composer, request, fresh=attempt < FRESH_TRIES)
            if batch is not None:
                return batch
    raise OverloadedError(
        f"request_id={request.request_id!r}: others leased prompts in between {CLAIM_TRIES} times; "
        "ask again"
    )


async def _try_claim(
    run: Run, composer: Composer, request: BatchRequest, *, fresh: bool
) -> ServedBatch | None:
    """One go at composing and leasing; None when it must be repeated after reading again."""
    if request.timeline not in (None, run.mirror.document.timeline):
        await run.sync()
        run.check_timeline(request.timeline)
    if run.open_window(request.policy_step) is None:
        known = await _known_batch(run, request)
        if known is not None:
            return known
    step = run.counting_step(request.policy_step, for_reference=request.is_reference)
    window = await run.window_for(step, request.timeline)
    proposal = await composer.propose(run, request)
    if len(proposal.prompts) > MAX_PROMPTS_BYTES:
        raise InvalidRequestError(
            f"prompt_count={request.prompt_count}: these prompts have {len(proposal.prompts)} "
            f"bytes; must be so few that they fit {MAX_PROMPTS_BYTES}"
        )
    mirror = run.mirror
    record = BatchRecord(
        request.request_id,
        mirror.document.timeline,
        request.policy_step,
        request.digest(),
        proposal.slots,
        proposal.shortfall,
    )
    reply = await claim(
        run.redis,
        run.keys,
        record,
        layout=mirror.layout,
        seq=mirror.seq if fresh else None,
        claims=mirror.claims,
        event_id=mirror.event_id,
        now_s=run.now_s(),
        window=window.window,
        ttl_s=mirror.config.probe_lease_s if request.probe else mirror.config.lease_ttl_s,
        mark_served=not request.probe,
    )
    if reply.status == "ok":
        run.note_event(reply.seq)
        return ServedBatch(reply.record, proposal.prompts, is_new=True)
    if reply.status == "known":
        return _served_before(run, request, reply.record)
    return None


async def _without_probes(run: Run, request: BatchRequest) -> ServedBatch | None:
    """The batch that the request got before, or an empty one, of which nothing is kept; None if
    there is work after all."""
    known = await _known_batch(run, request)  # which reads what is new
    why = why_no_probes(run, request)
    if known is not None or not why:
        return known
    none, timeline = np.zeros(0, SLOT_DTYPE), run.mirror.document.timeline
    content = (request.digest(), none, why, run.now_s())
    record = BatchRecord(request.request_id, timeline, request.policy_step, *content)
    return ServedBatch(record, b"", is_new=False)


async def _known_batch(run: Run, request: BatchRequest) -> ServedBatch | None:
    """What the request got before: a repeat is answered however far the run has come, and opens no
    window."""
    await run.sync()  # its prompts and its timeline may be newer than the mirror
    run.check_timeline(request.timeline)
    timeline = run.mirror.document.timeline
    known = await load_batch(run.redis, run.keys, timeline, request.request_id)
    return _served_before(run, request, known.record) if known is not None else None


def _served_before(run: Run, request: BatchRequest, record: BatchRecord) -> ServedBatch:
    if record.digest != request.digest():
        raise AlreadyExistsError(
            f"request_id={request.request_id!r}: was used with other content; "
            "a new batch needs a new request_id"
        )
    prompts = encode_prompts(record.slots, run.mirror.catalog.fields)
    return ServedBatch(record, prompts, is_new=False)
