"""One lease, from its prompts to its reports."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from curriculum_api.errors import ConflictError, InvalidRequestError, NotFoundError, StateError
from curriculum_api.v1 import batch_pb2
from curriculum_probe import metrics
from curriculum_probe.engines import Completion, Engine, EngineError, RefusedError
from curriculum_probe.gate import Gate
from curriculum_probe.progress import Progress, Tally
from curriculum_probe.service import Service
from curriculum_probe.threads import in_thread
from curriculum_probe.unusable import Unusable
from curriculum_probe.verifiers.pool import UnverifiableError, Verdict, VerifierPool

GATHER_S = 1.0
GATHER_PROMPTS = 64
"""What is gathered for one report. With the most attempts per prompt it is the largest allowed."""
MAX_REFUSED_REPORTS = 3
"""One refused report may be a rollback or a slow round; in a row they are a mistake."""
REFUSALS = (ConflictError, NotFoundError, StateError, InvalidRequestError)

logger = logging.getLogger(__name__)


@dataclass
class Tools:
    """What all rounds of a worker share."""

    run_id: str
    service: Service
    engine: Engine
    verifiers: VerifierPool
    gate: Gate
    progress: Progress = field(default_factory=Progress)
    unusable: Unusable = field(default_factory=Unusable)
    refused_in_a_row: int = 0
    """Reports of rounds that each began after the one before was refused."""


@dataclass(frozen=True)
class _Finished:
    """A prompt whose attempts are sampled and judged."""

    slot: int
    completions: Sequence[Completion]
    verdicts: Sequence[Verdict]


class Round:
    """Samples, verifies and reports the prompts of one batch, and gives back what is left of it.

    Reports are named by the batch and a number, and a repeated call carries the same name, so that
    no attempt counts twice.
    """

    def __init__(self, batch: batch_pb2.Batch, tools: Tools) -> None:
        self._batch, self._tools = batch, tools
        self._tally = Tally()
        self._started_s = time.monotonic()
        self._because = batch.shortfall
        self._sampling: list[asyncio.Task[None]] = []
        self._finished: asyncio.Queue[_Finished | None] = asyncio.Queue()
        self._refusals: list[RefusedError] = []
        self._refused_before = tools.refused_in_a_row
        self._usable = self._check(batch.prompts)

    @property
    def batch(self) -> batch_pb2.Batch:
        return self._batch

    @property
    def is_useful(self) -> bool:
        """Whether it has a prompt that can be sampled and verified."""
        return bool(self._usable)

    async def run(self, policy_step: int) -> None:
        """See it through; every attempt is from this step's weights.

        However it ends, what was verified is reported and the rest given back.
        """
        reporting = asyncio.create_task(self._report_in_parts(policy_step))
        self._sampling = [asyncio.create_task(self._probe(served)) for served in self._usable]
        try:
            await _all(self._sampling)
            if self._refusals and not self._tools.progress.total.sampled_count:
                raise EngineError(str(self._refusals[0]))  # not the prompts' fault, it seems
        except Exception:
            self._tools.gate.close()  # what has been sampled is still worth a report, no more is
            raise
        finally:
            self.abandon()
            self._finished.put_nowait(None)
            try:
                await reporting
            finally:
                await self.give_back()
                if self._batch.prompts:
                    self._log(policy_step)

    def abandon(self) -> None:
        """Sample and verify no more."""
        for task in self._sampling:
            task.cancel()

    async def give_back(self) -> None:
        """Let others have what was not reported."""
        allotted = sum(served.attempt_count for served in self._batch.prompts)
        if self._tally.attempt_count < allotted:
            await in_thread(partial(self._tools.service.release, self._batch))

    def _check(self, prompts: Sequence[batch_pb2.ServedPrompt]) -> list[batch_pb2.ServedPrompt]:
        usable, unusable = [], self._tools.unusable
        for served in prompts:
            prompt = served.prompt
            try:
                if prompt.prompt_id not in unusable:
                    self._tools.verifiers.check(prompt.payload_json)
                    usable.append(served)
            except UnverifiableError as error:
                unusable.add(prompt.prompt_id, math.inf)
                unusable.warn_once("prompts skipped", prompt.prompt_id, str(error))
        self._tools.progress.add(self._tally, skipped_count=len(prompts) - len(usable))
        return usable

    async def _probe(self, served: batch_pb2.ServedPrompt) -> None:
        completions = await self._sample(served)
        if not completions:
            return
        progress, attempt_count = self._tools.progress, len(completions)
        tokens = sum(completion.token_count or 0 for completion in completions)
        progress.add(self._tally, prompt_count=1, sampled_count=attempt_count, token_count=tokens)
        progress.add_unverified(attempt_count)
        try:
            with metrics.VERIFY_SECONDS.time():
                verdicts = await self._tools.verifiers.verify(
                    served.prompt.payload_json, [completion.text for completion in completions]
                )
        finally:
            progress.add_unverified(-attempt_count)
        self._note_errors(served.prompt.prompt_id, verdicts)
        self._finished.put_nowait(_Finished(served.slot, completions, verdicts))

    async def _sample(self, served: batch_pb2.ServedPrompt) -> list[Completion]:
        gate, prompt = self._tools.gate, served.prompt
        if not await gate.enter(served.attempt_count):
            return []
        try:
            with metrics.SAMPLE_SECONDS.time():
                return await self._tools.engine.sample(prompt.text, served.attempt_count)
        except RefusedError as refusal:
            self._refusals.append(refusal)
            self._tools.unusable.add(prompt.prompt_id, math.inf)
            self._tools.progress.add(self._tally, skipped_count=1)
            return []
        finally:
            gate.leave(served.attempt_count)

    def _note_errors(self, prompt_id: str, verdicts: Sequence[Verdict]) -> None:
        errors = [verdict.because for verdict in verdicts if verdict.score is None]
        self._tools.progress.add(self._tally, verifier_error_count=len(errors))
        for because in errors[:1]:
            self._tools.unusable.warn_once("verifier failed", prompt_id, because)
        if len(errors) == len(verdicts):
            self._tools.unusable.add(prompt_id)

    async def _report_in_parts(self, policy_step: int) -> None:
        number, is_last = 0, False
        try:
            while not is_last:
                ready, is_last = await self._gather()
                outcomes = _outcomes(ready)
                name = f"{self._batch.batch_id}.{number}"
                if outcomes.slots and not await self._report(name, outcomes, policy_step):
                    return
                number += 1
        except Exception:
            self._tools.gate.close()
            raise
        finally:
            self.abandon()

    async def _gather(self) -> tuple[list[_Finished], bool]:
        """What is finished within a moment, and whether it is the last."""
        ready: list[_Finished] = []
        try:
            item = await self._finished.get()
            async with asyncio.timeout(GATHER_S):
                while item is not None:
                    ready.append(item)
                    if len(ready) == GATHER_PROMPTS:
                        return ready, False
                    item = await self._finished.get()
        except TimeoutError:
            return ready, False
        return ready, True

    async def _report(self, name: str, outcomes: batch_pb2.Outcomes, policy_step: int) -> bool:
        """Whether the report was taken."""
        tools = self._tools
        try:
            receipt = await in_thread(
                lambda: tools.service.report(
                    name, self._batch, policy_step=policy_step, outcomes=outcomes
                )
            )
        except REFUSALS as error:
            self._because = f"report refused: {error}"
            self._count_refusal()
            if tools.refused_in_a_row == MAX_REFUSED_REPORTS:
                raise
            return False
        tools.refused_in_a_row = 0
        counts = {"attempt_count": receipt.attempt_count, "pass_count": receipt.pass_count}
        tools.progress.add(self._tally, **counts)
        return True

    def _count_refusal(self) -> None:
        """Rounds that were under way together are refused together: that is one refusal."""
        metrics.REFUSED_REPORTS.inc()
        known, before = self._tools.refused_in_a_row, self._refused_before
        self._tools.refused_in_a_row = max(known, min(known, before) + 1)

    def _log(self, policy_step: int) -> None:
        tally = self._tally
        if self._refusals:
            count, because = len(self._refusals), self._refusals[0]
            logger.warning("prompts refused count=%d because=%s", count, because)
        logger.info(
            "round probed run=%s policy_step=%d prompts=%d attempts=%d passes=%d skipped=%d "
            "verifier_errors=%d tokens=%s s=%.1f%s",
            self._tools.run_id,
            policy_step,
            tally.prompt_count,
            tally.attempt_count,
            tally.pass_count,
            tally.skipped_count,
            tally.verifier_error_count,
            tally.token_count or "unknown",
            time.monotonic() - self._started_s,
            f" because={self._because}" if self._because else "",
        )


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait until they are done, or one failed; those that were cancelled did not fail."""
    if not tasks:
        return
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        if not task.cancelled():
            task.result()


def _outcomes(finished: Sequence[_Finished]) -> batch_pb2.Outcomes:
    """The judged attempts; a verifier's error says nothing of an attempt."""
    outcomes, tokens = batch_pb2.Outcomes(), list[int | None]()
    for prompt in finished:
        for completion, verdict in zip(prompt.completions, prompt.verdicts, strict=True):
            if verdict.score is not None:
                outcomes.slots.append(prompt.slot)
                outcomes.rewards.append(min(max(verdict.score, 0.0), 1.0))
                tokens.append(completion.token_count)
    known = [count for count in tokens if count is not None]
    if len(known) == len(tokens):
        outcomes.token_counts.extend(known)
    return outcomes
