"""The loop: lease, generate, verify, report.

Every id derives from the worker's name and the round, and a repeated call carries the same ones, so
that no attempt counts twice. What is not reported is given back at the end of its round.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from curriculum_api.errors import ConflictError, InvalidRequestError, NotFoundError, StateError
from curriculum_api.v1 import batch_pb2
from curriculum_api.v1.probe_service_pb2 import LeaseProbesResponse
from curriculum_probe.engines import Completion, Engine
from curriculum_probe.service import Service
from curriculum_probe.verifiers import Scorer, UnverifiableError, scorer_for

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 60.0
MIN_RENEWAL_S = 0.2
MAX_RENEWAL_S = 20.0
"""Between renewals, a third of the time to live; bounded, for the server's clock is another one."""
MAX_REFUSED_ROUNDS = 3
"""One refused report may be a rollback or a slow round; in a row they are a mistake."""
REFUSALS = (ConflictError, NotFoundError, StateError, InvalidRequestError)
REWARD = "reward"
"""What an objective calls the reward; its other names are channels."""
NAME_THE_STEP = "name the step of the weights that are sampled with --policy-step"

logger = logging.getLogger(__name__)

Work = tuple[batch_pb2.ServedPrompt, Scorer]


@dataclass(frozen=True)
class Plan:
    """What a worker does. None: attempts as the run has them, the published step, no end."""

    run_id: str
    prompt_count: int
    chunk_size: int
    attempt_count: int | None = None
    policy_step: int | None = None
    round_count: int | None = None


@dataclass
class Tally:
    """What came of one round; `because` says why it is smaller than asked."""

    policy_step: int = 0
    prompt_count: int = 0
    attempt_count: int = 0
    pass_count: int = 0
    token_count: int = 0
    skipped_count: int = 0
    verifier_error_count: int = 0
    because: str = ""


class Worker:
    """Probes one run with one engine."""

    def __init__(self, plan: Plan, service: Service, engine: Engine, stop: threading.Event) -> None:
        self._plan, self._service, self._engine, self._stop = plan, service, engine, stop
        self._name = f"probe-{uuid.uuid4().hex}"
        self._step = plan.policy_step
        self._refused_rounds = 0
        self._warned: set[str] = set()

    def run(self) -> None:
        """Work until stopped or through with the plan.

        Raises:
            CurriculumError: the server refuses what this worker does, or stays away.
            EngineError: the engine cannot sample.
        """
        self._read_run()
        pause_s = FIRST_PAUSE_S
        for number in itertools.count():
            started_s, tally = time.monotonic(), Tally()
            self._probe_round(f"{self._name}-{number}", tally)
            self._log_round(tally, time.monotonic() - started_s)
            if self._stop.is_set() or number + 1 == self._plan.round_count:
                return
            if tally.attempt_count:
                pause_s = FIRST_PAUSE_S
                continue
            logger.info("pausing pause_s=%g", pause_s)
            if self._stop.wait(pause_s):
                return
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def _read_run(self) -> None:
        """Learn the published step, and whether scores in [0, 1] are what this run counts."""
        run = self._service.run()
        if self._plan.policy_step is None and run.HasField("policy"):
            self._step = run.policy.policy_step
        config = run.config
        if config.reward_min > 0 or config.reward_max < 1 or config.pass_threshold > 1:
            raise StateError(
                f"run_id={run.run_id!r}: verifiers score in [0, 1], but rewards are in "
                f"[{config.reward_min:g}, {config.reward_max:g}] and pass at "
                f"{config.pass_threshold:g}"
            )
        channels = sorted(config.objective.keys() - {REWARD})
        if channels:
            raise StateError(
                f"run_id={run.run_id!r}: verifiers score attempts by a reward alone, but its "
                f"objective takes every attempt with the channels {', '.join(channels)}: it cannot "
                "be probed"
            )

    def _probe_round(self, batch_id: str, tally: Tally) -> None:
        response = self._lease(batch_id, tally)
        if response is None:
            return
        batch = response.batch
        try:
            self._adopt_step(response)
            tally.policy_step, tally.because = self._step or 0, batch.shortfall
            work = self._prepare(batch.prompts, tally)
            with self._renewing(batch):
                self._probe_batch(batch, work, tally)
        finally:
            if tally.attempt_count < sum(served.attempt_count for served in batch.prompts):
                self._service.release(batch)

    def _lease(self, batch_id: str, tally: Tally) -> LeaseProbesResponse | None:
        plan, step = self._plan, self._step
        try:
            return self._service.lease(
                batch_id, plan.prompt_count, policy_step=step or 0, attempt_count=plan.attempt_count
            )
        except InvalidRequestError as error:
            if step is None:
                raise InvalidRequestError(f"{error}; {NAME_THE_STEP}") from error
            if plan.policy_step is not None:
                raise
            # The trainer has gone on since it published, or has published since this was read.
            tally.because = str(error)
            self._read_run()
        return None

    def _adopt_step(self, response: LeaseProbesResponse) -> None:
        """The step that attempts are reported with: as told, or the newest published."""
        if self._plan.policy_step is None and response.HasField("policy"):
            self._step = response.policy.policy_step
        if self._step is None:
            raise StateError(
                f"run_id={self._plan.run_id!r}: has no published policy; {NAME_THE_STEP}"
            )

    def _prepare(self, prompts: Sequence[batch_pb2.ServedPrompt], tally: Tally) -> list[Work]:
        """The prompts that can be verified, before anything is generated."""
        work: list[Work] = []
        for served in prompts:
            try:
                work.append((served, scorer_for(served.prompt.payload_json)))
            except UnverifiableError as error:
                tally.skipped_count += 1
                self._warn_once("prompts skipped", served, str(error))
        return work

    def _probe_batch(self, batch: batch_pb2.Batch, work: Sequence[Work], tally: Tally) -> None:
        """Chunk by chunk, until the batch is done, a report is refused or the worker is stopped."""
        for first in range(0, len(work), self._plan.chunk_size):
            outcomes = self._sample(work[first : first + self._plan.chunk_size], tally)
            if outcomes.slots and not self._report(
                f"{batch.batch_id}.{first}", batch, outcomes, tally
            ):
                return
            if self._stop.is_set():
                return

    def _sample(self, chunk: Sequence[Work], tally: Tally) -> batch_pb2.Outcomes:
        answers = self._engine.generate(
            [served.prompt.text for served, _ in chunk],
            [served.attempt_count for served, _ in chunk],
        )
        outcomes, tokens = batch_pb2.Outcomes(), list[int | None]()
        for (served, scorer), completions in zip(chunk, answers, strict=True):
            tally.prompt_count += bool(completions)
            tally.skipped_count += not completions
            for completion in completions:
                tally.token_count += completion.token_count or 0
                reward = self._reward(served, scorer, completion)
                if reward is None:
                    tally.verifier_error_count += 1
                    continue
                outcomes.slots.append(served.slot)
                outcomes.rewards.append(reward)
                tokens.append(completion.token_count)
        known = [count for count in tokens if count is not None]
        if len(known) == len(tokens):
            outcomes.token_counts.extend(known)
        return outcomes

    def _reward(
        self, served: batch_pb2.ServedPrompt, scorer: Scorer, completion: Completion
    ) -> float | None:
        """In [0, 1]; None when the verifier failed, which says nothing of the completion."""
        try:
            score = scorer(completion.text)
            if not math.isfinite(score):
                raise ValueError(f"score={score}: must be finite")
        except Exception as error:  # the boundary: verifiers are others' code and raise anything
            self._warn_once("verifier failed", served, type(error).__name__)
            return None
        return min(max(score, 0.0), 1.0)

    def _report(
        self, request_id: str, batch: batch_pb2.Batch, outcomes: batch_pb2.Outcomes, tally: Tally
    ) -> bool:
        """Whether the report was taken."""
        try:
            receipt = self._service.report(
                request_id, batch, policy_step=tally.policy_step, outcomes=outcomes
            )
        except REFUSALS as error:
            self._refused_rounds += 1
            if self._refused_rounds == MAX_REFUSED_ROUNDS:
                raise
            tally.because = f"report refused: {error}"
            return False
        self._refused_rounds = 0
        tally.attempt_count += receipt.attempt_count
        tally.pass_count += receipt.pass_count
        return True

    @contextmanager
    def _renewing(self, batch: batch_pb2.Batch) -> Iterator[None]:
        """Keep the batch's leases for as long as the block runs."""
        left_s = batch.lease_expire_time.seconds - time.time()
        interval_s = min(max(left_s / 3, MIN_RENEWAL_S), MAX_RENEWAL_S)
        done = threading.Event()

        def renew() -> None:
            while not done.wait(interval_s):
                self._service.renew(batch)

        thread = threading.Thread(target=renew, name="renewal", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _warn_once(self, event: str, served: batch_pb2.ServedPrompt, because: str) -> None:
        """One line for each cause, not for each prompt."""
        if because not in self._warned:
            self._warned.add(because)
            logger.warning("%s first=%s because=%s", event, served.prompt.prompt_id, because)

    def _log_round(self, tally: Tally, elapsed_s: float) -> None:
        logger.info(
            "round probed run=%s policy_step=%d prompts=%d attempts=%d passes=%d skipped=%d "
            "verifier_errors=%d tokens_per_s=%s s=%.1f%s",
            self._plan.run_id,
            tally.policy_step,
            tally.prompt_count,
            tally.attempt_count,
            tally.pass_count,
            tally.skipped_count,
            tally.verifier_error_count,
            round(tally.token_count / elapsed_s) if tally.token_count else "unknown",
            elapsed_s,
            f" because={tally.because}" if tally.because else "",
        )
