"""What is peculiar to probers: who gets no work, and when a prompt needs no more of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curriculum import Band, Belief, Reason, bands_settled, classify_bands
from curriculum_server.engine.reporting import BatchCache, ReportRequest
from curriculum_server.engine.run import Run

if TYPE_CHECKING:
    from curriculum_server.engine.composing import BatchRequest


def why_no_probes(run: Run, request: BatchRequest) -> str:
    """Why a prober gets no work for the policy that it samples; empty if it does."""
    if request.is_reference:
        return ""
    step = request.policy_step
    document, config = run.mirror.document, run.mirror.config
    published = document.policy_step
    newest = run.mirror.policy_step if published is None else published
    whose = "the run" if published is None else "the newest published policy"
    reached = max(newest, run.mirror.policy_step)
    # The trainer would open one more window; a later one would take all its counts of the steps
    # between.
    next_end = document.windows[-1].last_step + config.window_steps
    if document.resumed is not None and step > max(reached, next_end):
        return (
            f"policy_step={step}: is ahead of the run, which was rolled back to step "
            f"{document.resumed.policy_step} and is at step {reached}"
        )
    lag, most = newest - step, config.max_policy_lag
    if most is not None and lag > most:
        return (
            f"policy_step={step}: is {lag} steps behind {whose}, at step {newest}, and the run's "
            f"max_policy_lag is {most}"
        )
    oldest = run.oldest_step
    if step < oldest:
        return f"policy_step={step}: is too old, windows before step {oldest} are closed"
    return ""


async def settled_slots(run: Run, cache: BatchCache, request: ReportRequest) -> NDArray[np.int64]:
    """Of the slots that a report was about, those whose prompts need no more attempts.

    Never sentinels' or the reference policy's: all of these get as many attempts, or who passes
    late would count for less.
    """
    create_ms = run.mirror.document.create_ms
    batch = await cache.get(run, request.timeline, request.batch_id)  # which may take the lock
    async with run.lock:
        await run.sync()
        if run.mirror.document.create_ms != create_ms:
            return np.zeros(0, np.int64)  # it is another run by now
        slots_K = np.unique(request.attempts.slots_K)
        served = batch.state.record.slots[slots_K]
        belief = await _beliefs(run, served["index"].astype(np.int64), request.policy_step)
        selection = run.mirror.config.selection
    low, high = selection.edge_low, selection.edge_high
    band_K = classify_bands(belief, np.ones(len(slots_K), np.int64), low, high)
    is_over_K = served["reason"] == Reason.PROBE
    # That it is hopeless was known; the attempts are for the chance that it is not.
    is_over_K |= (served["reason"] == Reason.PROBE_REACH) & (band_K != Band.BEYOND)
    settled_K: NDArray[np.int64] = slots_K[is_over_K & bands_settled(belief, low, high)]
    return settled_K


async def _beliefs(run: Run, indices_K: NDArray[np.int64], step: int) -> Belief:
    """On every count there is, and on what the pool taught when it was fitted last: to fit it again
    for each report would take longer than the attempts that this may save."""
    model = run.mirror.latest_model
    if model is None:
        pool, model = await run.pool(step)
    else:
        pool = run.mirror.pool(step, run.now_s())
    return pool.beliefs(model, indices_K)
