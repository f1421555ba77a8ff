"""What a trainer's client does, without doing any of it: every method is a flow.

A sequence number becomes a request_id, and is used up only when its batch was received; until then
it names the same request, and another request gets another number.

A report's request_id is fixed before it is first sent, so however often it is sent it counts once:
from `part` where the caller names one, else from reporter, content and how many equal reports went
before.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from curriculum_api.errors import AlreadyExistsError, CurriculumError
from curriculum_api.status import AWAY
from curriculum_api.v1 import run_pb2
from curriculum_api.v1 import trainer_service_pb2 as pb
from curriculum_api.v1.batch_pb2 import Outcomes
from curriculum_client import _checks, _state
from curriculum_client._attempts import Origin, PerAttempt, group_attempts, is_one
from curriculum_client._batch import Batch, Receipt, decode_batch
from curriculum_client._delivery import REFUSED, Delivery
from curriculum_client._fallback import SeenPrompts
from curriculum_client._flow import Flow
from curriculum_client._forks import ProcessLock
from curriculum_client._numbers import Content, Numberings, Numbers
from curriculum_client._outcomes import PerPrompt, build_outcomes, content_key
from curriculum_client._settings import Settings

_log = logging.getLogger("curriculum_client")


class Core:
    """One client's state, and its calls as flows."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.delivery = Delivery(settings)
        self.timeline: int | None = None
        self.fallback_batch_count = 0
        self.reporter = settings.reporter or settings.default_reporter()
        self._sequence = Numbers()
        self._parts = Numberings()
        self._seen = SeenPrompts()
        self._warned = False
        self._lock = ProcessLock()

    def __getstate__(self) -> dict[str, Any]:
        # Snapshots, since other threads go on; and no prompts, which may be tens of megabytes.
        with self._lock:
            return {
                **vars(self),
                "_sequence": Numbers(self._sequence.state()),
                "_parts": Numberings(self._parts.state()),
                "_seen": SeenPrompts(),
            }

    def become_copy(self) -> None:
        """Report apart from the client that this one was forked or unpickled from.

        Equal reports of both are different attempts, and both must count.
        """
        # Calls that were under way are another process's, and their numbers free here.
        self._sequence = Numbers(self._sequence.state())
        if self.settings.reporter is None:
            self.reporter = f"{self.settings.default_reporter()}/{uuid.uuid4().hex}"

    def state_dict(self) -> dict[str, Any]:
        """Where the client stands."""
        with self._lock:
            return _state.dump(self.settings, self.timeline, self._sequence, self._parts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand there again."""
        timeline, sequence, parts = _state.load(self.settings, state)
        with self._lock:
            self._sequence, self._parts = sequence, parts
        self._adopt(timeline)

    def next_batch(
        self,
        prompt_count: int,
        policy_step: int,
        request_id: str | None,
        rollout_budget: int | None,
    ) -> Flow[Batch]:
        """Lease a batch, or draw one from memory where the caller allowed it."""
        _checks.check_prompt_count(prompt_count)
        _checks.check_policy_step(policy_step)
        if rollout_budget is not None:
            _checks.check_rollout_budget(rollout_budget, prompt_count)
        if request_id is not None:
            _checks.check_request_id(request_id)
        request = pb.NextBatchRequest(
            run_id=self.settings.run_id,
            prompt_count=prompt_count,
            policy_step=policy_step,
            rollout_budget=rollout_budget,
        )
        try:
            if request_id is not None:
                return (yield from self._lease(request, request_id))
            content = _state.request_content(policy_step, prompt_count, rollout_budget)
            with self._claimed(self._sequence, content) as number:
                return (yield from self._lease(request, f"{self.settings.consumer}-{number}"))
        except AlreadyExistsError as error:
            if request_id is None:
                error.add_note(
                    f"consumer={self.settings.consumer!r} asked this run for another batch before: "
                    "a training that starts anew takes a run of its own, one beside another takes "
                    "another consumer, and one that resumes restores the client with "
                    "load_state_dict and the run with rollback"
                )
            raise
        except AWAY as error:
            if not self._can_fall_back:
                raise
            return self._draw(request, error)

    def report(
        self,
        batch: Batch,
        rewards: PerPrompt,
        *,
        policy_step: int,
        token_counts: PerPrompt | None,
        channels: Mapping[str, PerPrompt] | None,
        part: str | int | None,
    ) -> Flow[Receipt | None]:
        """Count attempts, or keep them until the service is back."""
        _checks.check_policy_step(policy_step)
        if batch.is_fallback:
            self._warn_of_drop(batch)
            return None
        outcomes = build_outcomes(batch, rewards, token_counts=token_counts, channels=channels)
        origin = Origin(batch.timeline, batch.batch_id, policy_step)
        with ExitStack() as claims:
            name = self._name(claims, origin, outcomes, part)
            return (yield from self.delivery.report(self._pieces(origin, outcomes, name)))

    def report_attempts(
        self,
        leases: Sequence[str | None],
        rewards: PerAttempt,
        *,
        policy_step: int | Sequence[int],
        token_counts: PerAttempt | None,
        channels: Mapping[str, PerAttempt] | None,
        part: str | int | None,
    ) -> Flow[Receipt | None]:
        """Count attempts of any batches, or keep them until the service is back."""
        reports = group_attempts(
            leases, rewards, policy_step=policy_step, token_counts=token_counts, channels=channels
        )
        total, kept, refusal = Receipt(), False, None
        with ExitStack() as claims:  # whoever repeats a call that failed repeats all its reports
            for origin, outcomes in reports.items():
                named = part if part is None or is_one(policy_step) else (part, origin.policy_step)
                name = self._name(claims, origin, outcomes, named)
                try:
                    receipt = yield from self.delivery.report(self._pieces(origin, outcomes, name))
                except REFUSED as error:  # one batch's; the others are as good as they were
                    refusal = refusal or error
                    continue
                kept = kept or receipt is None
                total += receipt or Receipt()
        if refusal is not None:
            raise refusal
        return None if kept else total

    def release(self, batch: Batch) -> Flow[int]:
        """Give back what was not reported."""
        if batch.is_fallback:
            return 0
        request = pb.ReleaseBatchRequest(
            run_id=self.settings.run_id, batch_id=batch.batch_id, timeline=batch.timeline
        )
        response: pb.ReleaseBatchResponse = yield from self.delivery.call("ReleaseBatch", request)
        return response.released_count

    def publish_policy(self, policy_step: int, uri: str) -> Flow[None]:
        """Tell probers where the weights are."""
        _checks.check_policy_step(policy_step)
        policy = run_pb2.Policy(policy_step=policy_step, uri=uri)
        request = pb.PublishPolicyRequest(run_id=self.settings.run_id, policy=policy)
        yield from self.delivery.call("PublishPolicy", request)

    def checkpoint(self, name: str, policy_step: int) -> Flow[dict[str, int]]:
        """Mark a point to return to."""
        _checks.check_policy_step(policy_step)
        request = pb.CheckpointRequest(
            run_id=self.settings.run_id,
            checkpoint=run_pb2.Checkpoint(name=name, policy_step=policy_step),
            timeline=self.timeline,
        )
        response: pb.CheckpointResponse = yield from self.delivery.call("Checkpoint", request)
        return {kept.name: kept.policy_step for kept in response.checkpoints}

    def delete_checkpoint(self, name: str) -> Flow[dict[str, int]]:
        """Let a checkpoint go."""
        request = pb.DeleteCheckpointRequest(run_id=self.settings.run_id, checkpoint_name=name)
        response: pb.DeleteCheckpointResponse = yield from self.delivery.call(
            "DeleteCheckpoint", request
        )
        return {kept.name: kept.policy_step for kept in response.checkpoints}

    def rollback(self, checkpoint_name: str, request_id: str | None) -> Flow[int]:
        """Return to a checkpoint and adopt the new timeline."""
        # Never derived from the state: going back to one checkpoint twice is two rollbacks.
        name = f"rollback-{uuid.uuid4().hex}" if request_id is None else request_id
        _checks.check_request_id(name)
        request = pb.RollbackRequest(
            run_id=self.settings.run_id, request_id=name, checkpoint_name=checkpoint_name
        )
        response: pb.RollbackResponse = yield from self.delivery.call("Rollback", request)
        self._adopt(response.timeline)
        return response.policy_step

    @property
    def _can_fall_back(self) -> bool:
        return self.settings.on_unavailable == "uniform" and len(self._seen) > 0

    def _lease(self, request: pb.NextBatchRequest, request_id: str) -> Flow[Batch]:
        request.request_id = request_id
        if self.timeline is not None:
            request.timeline = self.timeline
        # While the service is known to be away, falling back need not wait for it each time.
        patient = not (self.delivery.is_away and self._can_fall_back)
        response: pb.NextBatchResponse = yield from self.delivery.call(
            "NextBatch", request, patient=patient
        )
        batch = decode_batch(response.batch)
        self._adopt(batch.timeline)
        if self.settings.on_unavailable == "uniform":
            with self._lock:
                self._seen.add(batch, has_budget=_budget(request) is not None)
        return batch

    def _draw(self, request: pb.NextBatchRequest, because: CurriculumError) -> Batch:
        with self._lock:
            settings, self.fallback_batch_count = self.settings, self.fallback_batch_count + 1
            batch = self._seen.draw(
                request.prompt_count,
                policy_step=request.policy_step,
                timeline=self.timeline or 0,
                rollout_budget=_budget(request),
                seed=f"{settings.run_id}/{settings.consumer}/{self.fallback_batch_count}",
            )
        _log.warning(
            "fallback drawn run=%s prompts=%d because=%s", settings.run_id, len(batch), because
        )
        return batch

    def _warn_of_drop(self, batch: Batch) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "report dropped run=%s prompts=%d because=its batch was a fallback; "
                "the next ones are dropped without a word",
                self.settings.run_id,
                len(batch),
            )

    def _name(
        self,
        claims: ExitStack,
        origin: Origin,
        outcomes: Sequence[Outcomes],
        part: str | int | tuple[str | int, int] | None,
    ) -> str:
        """What names this report, for as long as the claims are held."""
        batch = (origin.timeline, origin.batch_id)
        if part is not None:
            return content_key((*batch, "part", str(part)), ())
        key = content_key((*batch, self.reporter, origin.policy_step), outcomes)
        with self._lock:
            numbers = self._parts.of(key)
        return f"{key}-{claims.enter_context(self._claimed(numbers))}"

    def _pieces(
        self, origin: Origin, outcomes: Sequence[Outcomes], name: str
    ) -> list[pb.ReportOutcomesRequest]:
        return [
            pb.ReportOutcomesRequest(
                run_id=self.settings.run_id,
                request_id=f"report-{name}.{piece}" if piece else f"report-{name}",
                batch_id=origin.batch_id,
                timeline=origin.timeline,
                policy_step=origin.policy_step,
                outcomes=columns,
            )
            for piece, columns in enumerate(outcomes)
        ]

    def _adopt(self, timeline: int | None) -> None:
        """Timelines only rise, so the larger is the newer, whichever came first."""
        if timeline is not None:
            with self._lock:
                self.timeline = max(timeline, self.timeline or 0)

    @contextmanager
    def _claimed(self, numbers: Numbers, content: Content = ()) -> Iterator[int]:
        with self._lock:
            number = numbers.take(content)
        used = False
        try:
            yield number
            used = True
        finally:
            with self._lock:
                numbers.settle(number, used=used)


def _budget(request: pb.NextBatchRequest) -> int | None:
    return request.rollout_budget if request.HasField("rollout_budget") else None
