"""The loop: lease, sample, verify, report.

Leases follow each other before the one at hand is through, so that the engine always has work;
rounds verify and report meanwhile. Weights change only while nothing is sampled, and a round has
one policy step.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

from curriculum_api import limits
from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_api.v1 import run_pb2
from curriculum_api.v1.probe_service_pb2 import LeaseProbesResponse
from curriculum_probe import metrics
from curriculum_probe.engines import Engine
from curriculum_probe.gate import Gate
from curriculum_probe.renewal import Renewals
from curriculum_probe.rounds import Round
from curriculum_probe.service import Service
from curriculum_probe.threads import in_thread
from curriculum_probe.tools import Tools
from curriculum_probe.verifiers.pool import VerifierPool
from curriculum_probe.weights import Weights

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 60.0
ASK_AGAIN_S = 5.0
"""A pool that had too little is asked again when a round of ours is through, or after this."""
PROMPT_RATIO = 4
"""A probe may have 4 attempts where a group of 16 was counted on."""
LOOKAHEAD = 2
"""Attempts in hand that are not sampled yet, as a multiple of what the engine takes at once."""
MAX_UNVERIFIED = 16
"""Attempts that wait for verdicts, likewise; beyond, verifying is too slow to lease any more."""
REWARD = "reward"
"""What an objective calls the reward; its other names are channels."""
NAME_THE_STEP = "name the step of the weights that are sampled with --policy-step"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a worker does. None: attempts as many as are worth it, the published step, no end.

    `prompt_count` is of prompts with a group of attempts each: a lease of fewer attempts for each
    has more prompts.
    """

    run_id: str
    prompt_count: int
    attempt_count: int | None = None
    policy_step: int | None = None
    is_reference: bool = False
    """Whether the reference policy is sampled; until all is done that it is wanted for."""
    round_count: int | None = None
    drain_s: float = 30.0


class Worker:
    """Probes one run with one engine. Make and use it in one event loop."""

    def __init__(
        self,
        plan: Plan,
        service: Service,
        engine: Engine,
        verifiers: VerifierPool,
        *,
        stop: threading.Event | None = None,
    ) -> None:
        """
        Args:
            stop: is set when `stop` is called, for the service's patience.
        """
        self._plan, self._service, self._engine = plan, service, engine
        self._name = f"probe-{uuid.uuid4().hex}"
        self._stopping = stop or threading.Event()
        self._changed = asyncio.Event()
        self._gate = Gate(lambda: engine.slots, self._note_change)
        stops_early = plan.attempt_count is None
        self._tools = Tools(plan.run_id, service, engine, verifiers, self._gate, stops_early)
        self._group_size = 0
        self._weights = Weights(engine, plan.policy_step)
        self._renewals = Renewals(service)
        self._rounds: set[Round] = set()
        self._is_short = False
        self._because = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Work until stopped or through with the plan.

        Raises:
            CurriculumError: the server refuses what this worker does, or stays away.
            EngineError: the engine cannot sample.
        """
        self._begin(self._renewals.run())
        self._begin(self._tools.progress.show())
        try:
            # Nothing is cancelled: a lease that is being asked for must be known to be given back.
            await self._guarded(self._lease_on())
            await self._until(lambda: not self._rounds)
        finally:
            for task in self._tasks:
                task.cancel()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Lease no more, finish what is being sampled, within bounds, and give back the rest."""
        self._stopping.set()
        self._gate.close()
        self._note_change()
        logger.info("stopping attempts=%d", self._gate.attempt_count)
        asyncio.get_running_loop().call_later(self._plan.drain_s, self._abandon)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        """A failure ends the worker; what was verified is still reported."""
        try:
            await work
        except Exception as error:  # the boundary: `run` raises it
            self._failure = self._failure or error
            self._gate.close()
            self._abandon()
            self._note_change()

    def _abandon(self) -> None:
        for round_ in self._rounds:
            round_.abandon()

    async def _lease_on(self) -> None:
        await self._read_run()
        pause_s, number = FIRST_PAUSE_S, 0
        for call in itertools.count():
            await self._until(self._wants_work)
            if self._gate.is_closed:
                return
            has_begun = await self._begin_round(f"{self._name}-{call}")
            if not has_begun and self._rounds:
                self._run_short()
                continue
            if not has_begun:
                logger.info("nothing to probe because=%s", self._because)
            if not has_begun and self._plan.is_reference:
                return
            number += 1
            if number == self._plan.round_count:
                return
            pause_s = FIRST_PAUSE_S if has_begun else await self._pause(pause_s)

    async def _begin_round(self, batch_id: str) -> bool:
        """Lease, and sample what came. False: nothing came that can be sampled."""
        self._because = "no weights could be loaded"
        if self._weights.step is None:
            await self._read_run()
        response = await self._lease(batch_id) if self._weights.step is not None else None
        if response is None:
            return False
        round_ = Round(response.batch, self._tools)
        leased_count = len(response.batch.prompts)
        self._because = response.batch.shortfall
        if leased_count:
            self._because = f"none of {leased_count} leased prompts can be verified and sampled"
        self._rounds.add(round_)
        if leased_count:  # of an empty batch the server keeps nothing
            self._renewals.hold(response.batch)
        try:
            await round_.prepare()
            if response.HasField("policy"):
                await self._follow(response.policy)
        except BaseException:
            await self._end(round_, round_.give_back())
            raise
        step = self._weights.step or 0
        seeing_through = self._end(round_, round_.run(step))
        if round_.is_useful:
            self._begin(seeing_through)
            if response.batch.shortfall:
                self._run_short()
        else:
            await seeing_through
        return round_.is_useful

    async def _end(self, round_: Round, last: Coroutine[None, None, None]) -> None:
        try:
            await self._guarded(last)
        finally:
            self._renewals.drop(round_.batch)
            self._rounds.discard(round_)
            self._is_short = False
            self._note_change()

    async def _lease(self, batch_id: str) -> LeaseProbesResponse | None:
        plan, step = self._plan, self._weights.step or 0
        # Those that cannot be used are leased again, being worth as much as before.
        prompt_count, rollouts = plan.prompt_count + len(self._tools.unusable), None
        if plan.attempt_count is None:
            rollouts = min(prompt_count * self._group_size, limits.MAX_PROBE_ROLLOUTS)
            prompt_count *= PROMPT_RATIO
        lease = partial(
            self._service.lease,
            batch_id,
            min(prompt_count, limits.MAX_BATCH_PROMPTS),
            policy_step=step,
            attempt_count=plan.attempt_count,
            rollout_budget=rollouts,
            is_reference=plan.is_reference,
        )
        try:
            return await in_thread(lease)
        except InvalidRequestError as error:
            if plan.policy_step is not None:
                raise
            # The trainer has gone on since it published, or has published since this was read.
            await self._read_run()
            self._because = f"lease refused: {error}"
        return None

    async def _read_run(self) -> None:
        """Take up the published policy, if the run is one that verifiers can judge."""
        run = await in_thread(self._service.run)
        check_run(run)
        self._group_size = run.config.selection.group_size
        if run.HasField("policy"):
            await self._follow(run.policy)
        elif self._weights.step is None:
            raise StateError(f"run_id={run.run_id!r}: has no published policy; {NAME_THE_STEP}")

    async def _follow(self, policy: run_pb2.Policy) -> None:
        before = self._weights.step
        await self._weights.follow(policy, self._drained)
        if self._weights.step != before:  # at an endpoint nothing was waited for
            self._finish_waves()

    def _finish_waves(self) -> None:
        for round_ in self._rounds:
            round_.finish_wave()

    async def _drained(self) -> bool:
        self._finish_waves()
        await self._gate.idle()
        return not self._gate.is_closed

    def _wants_work(self) -> bool:
        """Whether another lease is to be asked for, or no more ever."""
        if self._gate.is_closed:
            return True
        slots, progress = self._engine.slots, self._tools.progress
        return (
            self._gate.attempt_count < LOOKAHEAD * slots
            and progress.unverified_count < MAX_UNVERIFIED * slots
            and not (self._is_short and self._rounds)
        )

    def _run_short(self) -> None:
        """The pool has too little at present: let a round end first."""
        self._is_short = True
        asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._ask_again)

    def _ask_again(self) -> None:
        self._is_short = False
        self._note_change()

    async def _pause(self, pause_s: float) -> float:
        """How long the next one is."""
        logger.info("pausing pause_s=%g", pause_s)
        try:
            async with asyncio.timeout(pause_s):
                await self._until(lambda: self._gate.is_closed)
        except TimeoutError:
            pass
        return min(2 * pause_s, LAST_PAUSE_S)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._changed.clear()
            await self._changed.wait()

    def _note_change(self) -> None:
        metrics.ENGINE_ATTEMPTS.set(self._gate.attempt_count)
        self._changed.set()


def check_run(run: run_pb2.Run) -> None:
    """Whether scores in [0, 1] are what this run counts.

    Raises:
        StateError: they are not.
    """
    config = run.config
    if config.reward_min > 0 or config.reward_max < 1 or config.pass_threshold > 1:
        raise StateError(
            f"run_id={run.run_id!r}: verifiers score in [0, 1], but rewards are in "
            f"[{config.reward_min:g}, {config.reward_max:g}] and pass at {config.pass_threshold:g}"
        )
    channels = sorted(config.objective.keys() - {REWARD})
    if channels:
        raise StateError(
            f"run_id={run.run_id!r}: verifiers score attempts by a reward alone, but its "
            f"objective takes every attempt with the channels {', '.join(channels)}: it cannot "
            "be probed"
        )
