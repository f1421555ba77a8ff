"""Composing batches, also ahead of the request.

What is composed follows from the ledger and the request alone, so it makes no difference when it is
done. Trainers ask in a row, `train-7` after `train-6`, and train in between: time enough to compose
what they will ask for next, so that only leasing is left to do when they do.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from curriculum import (
    Model,
    Pool,
    ProbeBudget,
    Selection,
    compose_batch,
    select_probes,
    select_references,
    sentinels,
)
from curriculum_server.engine.encoding import encode_prompts
from curriculum_server.engine.run import THREAD_POOL_SIZE, Run
from curriculum_server.engine.threads import in_thread
from curriculum_server.store.batches import SLOT_DTYPE, BatchRecord
from curriculum_server.store.columns import ATTEMPTS

_SEQUENCE = re.compile(r"(.*?)(\d+)", re.DOTALL)


@dataclass(frozen=True)
class BatchRequest:
    """What a trainer or prober asks for."""

    request_id: str
    prompt_count: int
    policy_step: int
    timeline: int | None
    attempt_count: int | None = None
    """Attempts of each prompt of a probe; None for as many as each is worth."""
    rollout_budget: int | None = None
    """Attempts for the whole batch; None for the group size each."""
    probe: bool = False
    is_reference: bool = False
    """Whether a prober samples the reference policy."""

    def digest(self) -> bytes:
        content: tuple[object, ...] = (
            self.probe, self.prompt_count, self.policy_step, self.attempt_count,
        )  # fmt: skip
        if self.rollout_budget is not None:  # others keep the digest they had in earlier versions
            content += (self.rollout_budget,)
        if self.is_reference:
            content += ("reference",)
        return hashlib.blake2b(repr(content).encode(), digest_size=16).digest()

    def next_in_row(self, previous: BatchRequest | None) -> BatchRequest | None:
        """What will be asked for next, if requests are numbered."""
        numbered = _SEQUENCE.fullmatch(self.request_id)
        if numbered is None:
            return None
        stride = self.policy_step - previous.policy_step if previous else 1
        return replace(
            self,
            request_id=f"{numbered[1]}{int(numbered[2]) + 1}",
            policy_step=max(0, self.policy_step + stride),
        )


@dataclass(frozen=True)
class Proposal:
    """A batch for a request, not leased yet."""

    request: BatchRequest
    basis: tuple[int, bytes]
    """The layout and the event on which it was chosen."""
    slots: NDArray[np.void]
    """B records of `SLOT_DTYPE`."""
    shortfall: str
    prompts: bytes
    """The slots as the `prompts` of a `Batch` message."""

    def fits(self, request: BatchRequest, run: Run) -> bool:
        """Whether composing it again would give the same."""
        return (self.request, self.basis) == (request, _basis(run))


class Composer:
    """Composes one run's batches. The caller holds the run's lock."""

    def __init__(self) -> None:
        self._previous: BatchRequest | None = None
        self._last: BatchRequest | None = None
        self._ahead: Proposal | None = None
        self._asked = False
        """Whether the last batch is still without a report, which is going to change the ledger."""
        self.report_count = 0
        """Reports that came."""

    async def propose(self, run: Run, request: BatchRequest) -> Proposal:
        """The request's batch on what the mirror holds now."""
        if request.probe:  # these come at any time, and are not foreseen
            return await _compose(run, request)
        ahead, self._ahead = self._ahead, None
        self._asked = True
        if request != self._last:
            self._previous, self._last = self._last, request
        # What fell short may not any more, since leases run out without an event.
        if ahead is not None and not ahead.shortfall and ahead.fits(request, run):
            return ahead
        return await _compose(run, request)

    def note_report(self) -> None:
        """Say that a trainer's report came: it is likely to ask for its next batch."""
        self._asked = False
        self.report_count += 1

    def must_fit(self, run: Run) -> bool:
        """Whether looking ahead takes a fit, which the next report may make useless."""
        expected = self._expected(run)
        return expected is not None and not (
            run.mirror.is_fitted and run.mirror.document.window_for(expected.policy_step)
        )

    async def look_ahead(self, run: Run) -> None:
        """Compose what is likely to be asked for next, or fit what it will be composed with."""
        expected = self._expected(run)
        if expected is None:
            return
        if run.mirror.document.window_for(expected.policy_step) is None:
            await run.fit_next(expected.policy_step)
        else:
            self._ahead = await _compose(run, expected)

    def _expected(self, run: Run) -> BatchRequest | None:
        """What is likely to be asked for next and was not composed yet."""
        if self._last is None or self._asked:
            return None
        expected = self._last.next_in_row(self._previous)
        return None if self._ahead and expected and self._ahead.fits(expected, run) else expected


async def _compose(run: Run, request: BatchRequest) -> Proposal:
    config, basis = run.mirror.config, _basis(run)
    resumed = _fetched_ahead(run, request)
    if resumed is not None:
        prompts = encode_prompts(resumed.slots, run.mirror.catalog.fields)
        return Proposal(request, basis, resumed.slots, resumed.shortfall, prompts)
    pool, model = await run.pool(request.policy_step)
    rng = generator(config.seed, request.request_id)
    if request.probe:
        choose = partial(_select_probes, run, request, pool, model, rng)
        selection = await in_thread(choose) if len(pool) > THREAD_POOL_SIZE else choose()
    else:
        selection = compose_batch(
            model,
            pool,
            config.selection,
            request.prompt_count,
            rng,
            rollout_budget=request.rollout_budget,
        )
    slots = _slots(selection)
    prompts = encode_prompts(slots, run.mirror.catalog.fields)
    return Proposal(request, basis, slots, selection.shortfall, prompts)


def _select_probes(
    run: Run, request: BatchRequest, pool: Pool, model: Model, rng: np.random.Generator
) -> Selection:
    config = run.mirror.config
    each = request.attempt_count or config.selection.group_size
    rollouts = request.rollout_budget or request.prompt_count * each
    budget = ProbeBudget(request.prompt_count, rollouts, request.attempt_count)
    fixed_S = sentinels(pool.domain_N, len(pool.domains), config.seed)
    if request.is_reference:
        return select_references(model, pool, budget, run.mirror.reference(ATTEMPTS), fixed_S)
    window = run.mirror.document.window_for(request.policy_step)  # it was opened for the lease
    sampled_S = run.mirror.column(window.window, ATTEMPTS)[fixed_S] if window else 0 * fixed_S
    due_S = fixed_S[sampled_S < config.selection.group_size]
    return select_probes(model, pool, config.selection, budget, due_S, rng)


def _fetched_ahead(run: Run, request: BatchRequest) -> BatchRecord | None:
    """The batch that this request got before the checkpoint to which the run was rolled back. It
    was composed before reports that the checkpoint holds, so composing gives another one."""
    known = run.resumed.get(request.request_id)
    if known is None or known.digest != request.digest():
        return None
    is_free = run.mirror.free_N(run.now_s())[known.slots["index"]]
    return known if is_free.all() else None


def _basis(run: Run) -> tuple[int, bytes]:
    return run.mirror.layout, run.mirror.event_id


def generator(seed: int, request_id: str) -> np.random.Generator:
    """All randomness of a batch, from the run's seed and the request's name alone."""
    digest = hashlib.blake2b(f"{seed}/{request_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))


def _slots(selection: Selection) -> NDArray[np.void]:
    slots = np.zeros(len(selection.indices_B), SLOT_DTYPE)
    slots["index"] = selection.indices_B
    slots["attempt_count"] = selection.attempt_counts_B
    slots["reason"] = selection.reasons_B
    slots["pass_rate"] = selection.pass_rate_B
    slots["pass_rate_low"] = selection.pass_rate_low_B
    slots["pass_rate_high"] = selection.pass_rate_high_B
    return slots
