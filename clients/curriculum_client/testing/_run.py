"""One run as the contract has it, in dicts and without beliefs. Methods are named as RPCs are."""

from __future__ import annotations

import copy
import random
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curriculum_api.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    StateError,
)
from curriculum_api.limits import MAX_CHECKPOINTS
from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2
from curriculum_api.v1 import trainer_service_pb2 as pb

MAX_STEP_ADVANCE = 10_000


@dataclass(frozen=True)
class Rules:
    """What a run is created with."""

    group_size: int
    seed: int
    lease_ttl_s: float
    reward_range: tuple[float, float]
    pass_threshold: float

    def __post_init__(self) -> None:
        low, high = self.reward_range
        if not 2 <= self.group_size <= 1024:
            raise InvalidRequestError(f"group_size={self.group_size}: must be in [2, 1024]")
        if not low < self.pass_threshold <= high:
            raise InvalidRequestError(
                f"pass_threshold={self.pass_threshold:g}: must be in ({low:g}, {high:g}]"
            )


class Lease:
    """A batch that was handed out, and how far it has come."""

    def __init__(self, message: batch_pb2.Batch, content: bytes) -> None:
        self.message = message
        self.content = content
        self.rewards: dict[int, list[float]] = {served.slot: [] for served in message.prompts}
        self.open_slots = set(self.rewards)
        self.is_expired = False

    @property
    def held(self) -> set[str]:
        """Prompts that no other batch may have."""
        if self.is_expired or self.message.lease_expire_time.ToNanoseconds() <= time.time_ns():
            return set()
        return {self.message.prompts[slot].prompt.prompt_id for slot in self.open_slots}


@dataclass
class Ledger:
    """What a rollback restores."""

    rewards: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    servings: Counter[str] = field(default_factory=Counter)
    policy_step: int = 0


class FakeRun:
    """Answers requests, one at a time: the caller holds a lock."""

    def __init__(self, prompts: Sequence[prompt_pb2.Prompt], rules: Rules) -> None:
        self.ledger = Ledger()
        self.timeline = 0
        self.leases: dict[str, Lease] = {}  # of this timeline, by batch_id
        self.served: list[batch_pb2.Batch] = []
        self._prompts, self._rules = prompts, rules
        self._answers: dict[tuple[str, str], tuple[bytes, Any]] = {}
        # By name: the step, the ledger, and the batches that were open, to be given again.
        self._checkpoints: dict[str, tuple[int, Ledger, dict[str, Lease]]] = {}
        self._resumed: Mapping[str, Lease] = {}

    def NextBatch(self, request: pb.NextBatchRequest) -> pb.NextBatchResponse:
        self._check_timeline(request.timeline if request.HasField("timeline") else None)
        if known := self._answer_before(request):
            return pb.NextBatchResponse(batch=known)
        self._note_step(request.policy_step)
        batch = self._fetched_ahead(request) or self._composed(request)
        batch.timeline = self.timeline
        ttl_ns = int(self._rules.lease_ttl_s * 1e9)
        batch.lease_expire_time.FromNanoseconds(time.time_ns() + ttl_ns)
        self.served.append(batch)
        self.leases[batch.batch_id] = Lease(batch, _content(request))
        return pb.NextBatchResponse(batch=self._remember(request, batch))

    def ReportOutcomes(self, request: pb.ReportOutcomesRequest) -> pb.ReportOutcomesResponse:
        self._check_timeline(request.timeline)
        lease = self._lease(request.batch_id)
        rewards = self._checked(request.outcomes, lease)
        if known := self._answer_before(request):
            response = pb.ReportOutcomesResponse(receipt=known)
            response.receipt.duplicate = True
            return response
        _check_room(rewards, lease)
        self._note_step(request.policy_step)
        receipt = self._remember(request, self._count(rewards, lease))
        return pb.ReportOutcomesResponse(receipt=receipt)

    def ReleaseBatch(self, request: pb.ReleaseBatchRequest) -> pb.ReleaseBatchResponse:
        self._check_timeline(request.timeline)
        lease = self._lease(request.batch_id)
        released, lease.open_slots = lease.open_slots, set()
        return pb.ReleaseBatchResponse(released_count=len(released))

    def PublishPolicy(self, request: pb.PublishPolicyRequest) -> pb.PublishPolicyResponse:
        self._check_step(request.policy.policy_step)
        return pb.PublishPolicyResponse()

    def Checkpoint(self, request: pb.CheckpointRequest) -> pb.CheckpointResponse:
        self._check_timeline(request.timeline if request.HasField("timeline") else None)
        name, step = request.checkpoint.name, request.checkpoint.policy_step
        known = self._checkpoints[name][0] if name in self._checkpoints else None
        if known not in (None, step):
            raise AlreadyExistsError(f"checkpoint.name={name!r}: is the checkpoint at step {known}")
        if known is None:
            least = max((mark[0] for mark in self._checkpoints.values()), default=0)
            if step < least:
                raise StateError(f"checkpoint.policy_step={step}: must be at least {least}")
            self._check_step(step)
            held = {batch_id: lease for batch_id, lease in self.leases.items() if lease.held}
            self._checkpoints[name] = step, copy.deepcopy(self.ledger), held
        if len(self._checkpoints) > MAX_CHECKPOINTS:
            del self._checkpoints[next(iter(self._checkpoints))]
        return pb.CheckpointResponse(checkpoints=self._kept())

    def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest) -> pb.DeleteCheckpointResponse:
        self._checkpoints.pop(request.checkpoint_name, None)
        return pb.DeleteCheckpointResponse(checkpoints=self._kept())

    def Rollback(self, request: pb.RollbackRequest) -> pb.RollbackResponse:
        known: pb.RollbackResponse | None = self._answer_before(request)
        if known is not None:
            return known
        name = request.checkpoint_name
        if name not in self._checkpoints:
            kept = ", ".join(map(repr, self._checkpoints)) or "none"
            raise NotFoundError(f"checkpoint_name={name!r}: is not kept; kept are {kept}")
        while next(reversed(self._checkpoints)) != name:
            self._checkpoints.popitem()
        step, ledger, self._resumed = self._checkpoints[name]
        self.ledger = copy.deepcopy(ledger)
        self.ledger.policy_step = step
        self.leases, self.timeline = {}, self.timeline + 1
        # Names of batches and reports are those of a timeline, names of rollbacks the run's.
        self._answers = {k: v for k, v in self._answers.items() if k[0] == "RollbackRequest"}
        response = pb.RollbackResponse(timeline=self.timeline, policy_step=step)
        self._remember(request, response)
        return response

    def _composed(self, request: pb.NextBatchRequest) -> batch_pb2.Batch:
        wanted, group_size = request.prompt_count, self._rules.group_size
        drawn = random.Random(f"{self._rules.seed}/{request.request_id}")
        turns = [(self.ledger.servings[p.prompt_id], drawn.random(), p) for p in self._prompts]
        held = {prompt_id for lease in self.leases.values() for prompt_id in lease.held}
        free = [turn for turn in turns if turn[2].prompt_id not in held]
        chosen = [prompt for _, _, prompt in sorted(free, key=lambda turn: turn[:2])[:wanted]]
        batch = batch_pb2.Batch(batch_id=request.request_id, policy_step=request.policy_step)
        if len(chosen) < wanted:
            why = f"{len(held)} prompts are leased, the rest of the pool is empty"
            batch.shortfall = f"{len(chosen)} of {wanted}: {why}"
        attempts = [group_size] * len(chosen)
        if request.HasField("rollout_budget"):
            attempts = _spread(request.rollout_budget, len(chosen), most=4 * group_size)
            if len(attempts) < len(chosen):
                batch.shortfall = f"{len(attempts)} of {wanted}: rollout_budget is spent"
        for slot, (prompt, count) in enumerate(zip(chosen, attempts, strict=False)):
            self.ledger.servings[prompt.prompt_id] += 1
            served = batch.prompts.add(slot=slot, prompt=prompt, attempt_count=count)
            served.pass_rate, served.pass_rate_low, served.pass_rate_high = 0.5, 0.05, 0.95
            served.reason = batch_pb2.REASON_UNIFORM
        return batch

    def _fetched_ahead(self, request: pb.NextBatchRequest) -> batch_pb2.Batch | None:
        """What the request got before the checkpoint from which the timeline began."""
        known = self._resumed.get(request.request_id)
        if known is None or known.content != _content(request):
            return None
        wanted = {served.prompt.prompt_id for served in known.message.prompts}
        if any(wanted & lease.held for lease in self.leases.values()):
            return None
        return copy.deepcopy(known.message)

    def _checked(self, outcomes: batch_pb2.Outcomes, lease: Lease) -> dict[int, list[float]]:
        """Rewards by slot."""
        low, high = self._rules.reward_range
        rewards = defaultdict(list)
        for row, (slot, reward) in enumerate(zip(outcomes.slots, outcomes.rewards, strict=True)):
            if slot not in lease.rewards:
                raise InvalidRequestError(f"outcomes.slots[{row}]={slot}: not in this batch")
            if not _float32(low) <= reward <= _float32(high):
                raise InvalidRequestError(
                    f"outcomes.rewards[{row}]={reward:g}: must be in [{low:g}, {high:g}]"
                )
            rewards[slot].append(reward)
        return rewards

    def _count(self, rewards: Mapping[int, list[float]], lease: Lease) -> batch_pb2.ReportReceipt:
        receipt, threshold = batch_pb2.ReportReceipt(), _float32(self._rules.pass_threshold)
        for slot, came in rewards.items():
            served, group = lease.message.prompts[slot], lease.rewards[slot]
            group += came
            self.ledger.rewards[served.prompt.prompt_id] += came
            receipt.attempt_count += len(came)
            receipt.pass_count += sum(reward >= threshold for reward in came)
            if len(group) == served.attempt_count:
                lease.open_slots.remove(slot)
                receipt.completed_group_count += 1
                receipt.mixed_group_count += len({reward >= threshold for reward in group}) == 2
        return receipt

    def _answer_before(self, request: Any) -> Any:
        """What the request got the first time; None if this is it."""
        known = self._answers.get((type(request).__name__, request.request_id))
        if known is None:
            return None
        if known[0] != _content(request):
            raise AlreadyExistsError(
                f"request_id={request.request_id!r}: was used with other content"
            )
        return known[1]

    def _remember(self, request: Any, answer: Any) -> Any:
        self._answers[type(request).__name__, request.request_id] = _content(request), answer
        return answer

    def _lease(self, batch_id: str) -> Lease:
        if batch_id not in self.leases:
            raise NotFoundError(
                f"batch_id={batch_id!r}: there is no such batch on timeline {self.timeline}"
            )
        return self.leases[batch_id]

    def _check_timeline(self, timeline: int | None) -> None:
        if timeline is not None and timeline != self.timeline:
            error = ConflictError if timeline < self.timeline else InvalidRequestError
            raise error(f"timeline={timeline}: must be {self.timeline}")

    def _check_step(self, step: int) -> None:
        most = self.ledger.policy_step + MAX_STEP_ADVANCE
        if step > most:
            raise InvalidRequestError(f"policy_step={step}: must be in [0, {most}]")

    def _note_step(self, step: int) -> None:
        self._check_step(step)
        self.ledger.policy_step = max(self.ledger.policy_step, step)

    def _kept(self) -> list[run_pb2.Checkpoint]:
        return [
            run_pb2.Checkpoint(name=name, policy_step=mark[0])
            for name, mark in self._checkpoints.items()
        ]


def _check_room(rewards: Mapping[int, list[float]], lease: Lease) -> None:
    for slot, came in rewards.items():
        allotted, before = lease.message.prompts[slot].attempt_count, len(lease.rewards[slot])
        if slot not in lease.open_slots or before + len(came) > allotted:
            raise StateError(
                f"outcomes.slots={slot}: must be given at most {allotted} attempts; {before} are "
                f"reported and {len(came)} came" + "; it is closed" * (slot not in lease.open_slots)
            )


def _content(request: Any) -> bytes:
    """What a repeat must have in common with the first request."""
    content = copy.deepcopy(request)
    if not isinstance(request, pb.RollbackRequest):
        content.ClearField("timeline")
    return bytes(content.SerializeToString(deterministic=True))


def _spread(budget: int, prompt_count: int, *, most: int) -> list[int]:
    """Attempts for as many of the prompts as can have two."""
    kept = min(prompt_count, budget // 2)
    each, left = divmod(budget, max(1, kept))
    return [min(each + (place < left), most) for place in range(kept)]


def _float32(value: float) -> float:
    """As a reward travels, so that a reward of 0.7 reaches a threshold of 0.7."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
