"""The reports of one round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from curriculum_api.errors import ConflictError, InvalidRequestError, NotFoundError, StateError
from curriculum_api.v1 import batch_pb2
from curriculum_probe import metrics
from curriculum_probe.engines import Completion
from curriculum_probe.progress import Tally
from curriculum_probe.threads import in_thread
from curriculum_probe.tools import Tools
from curriculum_probe.verifiers.pool import Verdict

GATHER_S = 1.0
GATHER_PROMPTS = 64
"""What is gathered for one report. With the most attempts per prompt it is the largest allowed."""
MAX_REFUSED_REPORTS = 3
"""One refused report may be a rollback or a slow round; in a row they are a mistake."""
REFUSALS = (ConflictError, NotFoundError, StateError, InvalidRequestError)


@dataclass(frozen=True)
class Finished:
    """Attempts at a prompt that are sampled and judged."""

    slot: int
    completions: Sequence[Completion]
    verdicts: Sequence[Verdict]


class Reports:
    """Gathers what is finished, reports it, and tells which prompts the server is sure of.

    Reports are named by the batch and a number, and a repeated call carries the same name, so that
    no attempt counts twice.
    """

    def __init__(self, batch: batch_pb2.Batch, tools: Tools, tally: Tally) -> None:
        self._batch, self._tools, self._tally = batch, tools, tally
        self._finished: asyncio.Queue[Finished | None] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[bool]] = {}
        """By slot, who waits for whether its prompt's band is settled."""
        self._settled: set[int] = set()
        self._refused_before = tools.refused_in_a_row
        self.because = ""
        """Why a report was refused."""

    def add(self, finished: Finished) -> None:
        """Have it reported."""
        self._finished.put_nowait(finished)

    async def is_settled(self, slot: int) -> bool:
        """What the server says of the slot's prompt when it has what was added last."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._answers[slot] = answer
        return await answer

    def end(self) -> None:
        """Nothing more comes."""
        self._finished.put_nowait(None)

    async def run(self, policy_step: int, on_end: Callable[[], None]) -> None:
        """Report until the end, or until a report is refused.

        Args:
            policy_step: of the weights that made all attempts.
            on_end: is called when nothing is reported any more.
        """
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
            on_end()

    async def _gather(self) -> tuple[list[Finished], bool]:
        """What is finished within a moment, and whether it is the last."""
        ready: list[Finished] = []
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
            response = await in_thread(
                lambda: tools.service.report(
                    name, self._batch, policy_step=policy_step, outcomes=outcomes
                )
            )
        except REFUSALS as error:
            self.because = f"report refused: {error}"
            self._count_refusal()
            if tools.refused_in_a_row == MAX_REFUSED_REPORTS:
                raise
            return False
        tools.refused_in_a_row = 0
        receipt, settled = response.receipt, frozenset(response.settled_slots)
        counts = {"attempt_count": receipt.attempt_count, "pass_count": receipt.pass_count}
        tools.progress.add(self._tally, **counts, settled_count=len(settled - self._settled))
        self._settled |= settled
        self._answer(outcomes, settled)
        return True

    def _answer(self, outcomes: batch_pb2.Outcomes, settled: Set[int]) -> None:
        for slot in set(outcomes.slots):
            answer = self._answers.pop(slot, None)
            if answer is not None and not answer.done():
                answer.set_result(slot in settled)

    def _count_refusal(self) -> None:
        """Rounds that were under way together are refused together: that is one refusal."""
        metrics.REFUSED_REPORTS.inc()
        known, before = self._tools.refused_in_a_row, self._refused_before
        self._tools.refused_in_a_row = max(known, min(known, before) + 1)


def _outcomes(finished: Sequence[Finished]) -> batch_pb2.Outcomes:
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
