"""One lease, from its prompts to its reports."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from curriculum_api.v1 import batch_pb2
from curriculum_api.v1.prompt_pb2 import Prompt
from curriculum_probe import metrics
from curriculum_probe.engines import Completion, EngineError, RefusedError
from curriculum_probe.progress import Tally
from curriculum_probe.reports import Finished, Reports
from curriculum_probe.threads import in_thread
from curriculum_probe.tools import Tools
from curriculum_probe.verifiers.pool import UnverifiableError, Verdict

WAVE_ATTEMPTS = 8
"""Attempts beyond the edge that are sampled before the server is asked whether it takes more: as
many as a usual group, since the answer takes a second or two."""

logger = logging.getLogger(__name__)


class Round:
    """Samples, verifies and reports the prompts of one batch, and gives back what is left of it."""

    def __init__(self, batch: batch_pb2.Batch, tools: Tools) -> None:
        self._batch, self._tools = batch, tools
        self._tally = Tally()
        self._started_s = time.monotonic()
        self._reports = Reports(batch, tools, self._tally)
        self._sampling: list[asyncio.Task[None]] = []
        self._is_last_wave = False
        self._refusals: list[RefusedError] = []
        self._usable: list[batch_pb2.ServedPrompt] = []

    @property
    def batch(self) -> batch_pb2.Batch:
        return self._batch

    @property
    def is_useful(self) -> bool:
        """Whether it has a prompt that can be sampled and verified."""
        return bool(self._usable)

    async def prepare(self) -> None:
        """Find the prompts whose verifiers can be loaded: the others must cost no tokens."""
        prompts, gate = self._batch.prompts, self._tools.gate
        looking = asyncio.gather(*[self._is_usable(served.prompt) for served in prompts])
        closed = asyncio.create_task(gate.closed())
        either: list[asyncio.Future[Any]] = [looking, closed]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if gate.is_closed:
                return  # nothing will be sampled
            found = looking.result()
        finally:
            for future in either:
                future.cancel()
            await asyncio.gather(*either, return_exceptions=True)
        self._usable = [
            served for served, is_usable in zip(prompts, found, strict=True) if is_usable
        ]
        self._tools.progress.add(self._tally, skipped_count=len(prompts) - len(self._usable))

    async def run(self, policy_step: int) -> None:
        """See it through; every attempt is from this step's weights.

        However it ends, what was verified is reported and the rest given back.
        """
        reporting = asyncio.create_task(self._reports.run(policy_step, self.abandon))
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
            self._reports.end()
            try:
                await reporting
            finally:
                await self.give_back()
                if self._batch.prompts:
                    self._log(policy_step)

    def finish_wave(self) -> None:
        """Sample what has begun and no more: the weights are going to change. A round that has not
        begun will sample the new ones."""
        self._is_last_wave = bool(self._sampling)

    def abandon(self) -> None:
        """Sample and verify no more."""
        for task in self._sampling:
            task.cancel()

    async def give_back(self) -> None:
        """Let others have what was not reported."""
        allotted = sum(served.attempt_count for served in self._batch.prompts)
        if self._tally.attempt_count < allotted:
            await in_thread(partial(self._tools.service.release, self._batch))

    async def _is_usable(self, prompt: Prompt) -> bool:
        unusable = self._tools.unusable
        if prompt.prompt_id in unusable:
            return False
        try:
            await self._tools.verifiers.prepare(prompt.payload_json)
        except UnverifiableError as error:
            unusable.add(prompt.prompt_id)  # not for ever: what failed may have been a process
            unusable.warn_once("prompts skipped", prompt.prompt_id, str(error))
            return False
        return True

    async def _probe(self, served: batch_pb2.ServedPrompt) -> None:
        """In waves, until no more attempts are allotted or wanted."""
        left = served.attempt_count
        in_waves = self._tools.stops_early and served.reason == batch_pb2.REASON_PROBE_REACH
        wave = WAVE_ATTEMPTS if in_waves else left
        is_first = True
        while await self._probe_once(served, min(wave, left), is_first=is_first):
            left, is_first = left - wave, False
            if left <= 0 or await self._reports.is_settled(served.slot) or self._is_last_wave:
                return

    async def _probe_once(
        self, served: batch_pb2.ServedPrompt, attempt_count: int, *, is_first: bool
    ) -> bool:
        """Whether anything came of it."""
        completions = await self._sample(served.prompt, attempt_count)
        if not completions:
            return False
        progress = self._tools.progress
        tokens = sum(completion.token_count or 0 for completion in completions)
        counts = {"sampled_count": attempt_count, "token_count": tokens}
        progress.add(self._tally, prompt_count=int(is_first), **counts)
        progress.add_unverified(attempt_count)
        try:
            with metrics.VERIFY_SECONDS.time():
                verdicts = await self._tools.verifiers.verify(
                    served.prompt.payload_json, [completion.text for completion in completions]
                )
        finally:
            progress.add_unverified(-attempt_count)
        self._note_errors(served.prompt.prompt_id, verdicts)
        self._reports.add(Finished(served.slot, completions, verdicts))
        return any(verdict.score is not None for verdict in verdicts)

    async def _sample(self, prompt: Prompt, attempt_count: int) -> list[Completion]:
        gate = self._tools.gate
        if not await gate.enter(attempt_count):
            return []
        try:
            with metrics.SAMPLE_SECONDS.time():
                return await self._tools.engine.sample(prompt.text, attempt_count)
        except RefusedError as refusal:
            self._refusals.append(refusal)
            self._tools.unusable.add(prompt.prompt_id, math.inf)
            self._tools.progress.add(self._tally, skipped_count=1)
            return []
        finally:
            gate.leave(attempt_count)

    def _note_errors(self, prompt_id: str, verdicts: Sequence[Verdict]) -> None:
        errors = [verdict.because for verdict in verdicts if verdict.score is None]
        self._tools.progress.add(self._tally, verifier_error_count=len(errors))
        for because in errors[:1]:
            self._tools.unusable.warn_once("verifier failed", prompt_id, because)
        if len(errors) == len(verdicts):
            self._tools.unusable.add(prompt_id)

    def _log(self, policy_step: int) -> None:
        tally, because = self._tally, self._reports.because or self._batch.shortfall
        if self._refusals:
            count, first = len(self._refusals), self._refusals[0]
            logger.warning("prompts refused count=%d because=%s", count, first)
        logger.info(
            "round probed run=%s policy_step=%d prompts=%d attempts=%d passes=%d skipped=%d "
            "verifier_errors=%d settled=%d tokens=%s s=%.1f for=%s%s",
            self._tools.run_id,
            policy_step,
            tally.prompt_count,
            tally.attempt_count,
            tally.pass_count,
            tally.skipped_count,
            tally.verifier_error_count,
            tally.settled_count,
            tally.token_count or "unknown",
            time.monotonic() - self._started_s,
            _reasons(self._batch.prompts),
            f" because={because}" if because else "",
        )


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait until they are done, or one failed; those that were cancelled did not fail."""
    if not tasks:
        return
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        if not task.cancelled():
            task.result()


def _reasons(prompts: Sequence[batch_pb2.ServedPrompt]) -> str:
    """What the prompts were leased for, the most frequent first."""
    counts = Counter(batch_pb2.Reason.Name(served.reason) for served in prompts)
    named = ((name.removeprefix("REASON_").lower(), n) for name, n in counts.most_common())
    return ",".join(f"{name}:{count}" for name, count in named)
