"""What a run's ledger must hold, in plain Python: the oracle of the ledger's state machine."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from curriculum_api.v1 import batch_pb2

REWARD_RANGE = (-1.0, 1.0)
PASS_THRESHOLD = 0.5
CHANNEL = "clarity"
CHANNEL_MAX = 4.0
FIXED_POINT = 1 << 14
COLUMNS = (
    *("attempts", "passes", "reward_excess", "reward_sq_excess", "tokens", "probed"),
    *("objective", "objective_sq", f"ch:{CHANNEL}"),
)
REFERENCE_COLUMNS = ("reference_attempts", "reference_passes")
RECORD_GRACE_S = 3600
PROBE_LEASE_S = 120

# What the tests give, chosen so that every fixed-point amount is a whole number and no rounding can
# differ.
BINARY_REWARDS = (-1.0, 1.0)
GRADED_REWARDS = (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0)
UNUSED_REWARD = -0.25
CHANNEL_VALUES = (0.0, 1.0, 2.0, 4.0)
OBJECTIVE = {"reward": 6.0, CHANNEL: 2.0}
MIXED_BITS = (1 << 16) - 1


@dataclass(frozen=True)
class Attempt:
    """One row of a report."""

    slot: int
    reward: float
    tokens: int | None = None
    clarity: float | None = None

    @property
    def passed(self) -> bool:
        return self.reward >= PASS_THRESHOLD

    @property
    def position(self) -> float:
        """Where the reward lies in its range."""
        low, high = REWARD_RANGE
        return (self.reward - low) / (high - low)

    def objective(self) -> float:
        """By `OBJECTIVE`; the attempt has to have a clarity."""
        clarity = self.clarity / CHANNEL_MAX
        weighted = OBJECTIVE["reward"] * self.position + OBJECTIVE[CHANNEL] * clarity
        return weighted / sum(OBJECTIVE.values())

    def amounts(self, *, is_probe: bool, has_objective: bool) -> dict[str, int]:
        """What the attempt adds, by column."""
        objective = self.objective() if has_objective else 0.0
        given = (
            1,
            int(self.passed),
            (self.position - self.passed) * FIXED_POINT,
            (self.position**2 - self.passed) * FIXED_POINT,
            self.tokens or 0,
            int(is_probe),
            objective * FIXED_POINT,
            objective**2 * FIXED_POINT,
            (self.clarity or 0.0) / CHANNEL_MAX * FIXED_POINT,
        )
        return dict(zip(COLUMNS, map(int, given), strict=True))

    def reference_amounts(self) -> dict[str, int]:
        """What it adds if the reference policy made it when the run had gone on."""
        return dict(zip(REFERENCE_COLUMNS, (1, int(self.passed)), strict=True))


@dataclass
class Slot:
    """A leased prompt and what was reported of it."""

    prompt_id: str
    allotted: int
    attempts: int = 0
    passes: int = 0
    objectives: set[float] = field(default_factory=set)
    """Those of its attempts, in a run with an objective."""
    is_closed: bool = False

    def is_mixed(self, *, has_objective: bool) -> bool:
        return len(self.objectives) > 1 if has_objective else 0 < self.passes < self.attempts

    def low_bits(self, *, has_objective: bool) -> int:
        """What the store keeps of the slot beside its attempts, to tell whether it is mixed."""
        if not has_objective:
            return self.passes
        if len(self.objectives) > 1:
            return MIXED_BITS
        return int(max(self.objectives, default=0.0) * FIXED_POINT)


@dataclass
class LeasedBatch:
    """A batch as the store must keep it."""

    message: batch_pb2.Batch
    request: object
    """The call that made it, to be repeated."""
    is_probe: bool
    slots: list[Slot]
    expire_s: int
    gone_s: int
    """When the store forgets it."""
    is_released: bool = False

    @property
    def is_of_reference(self) -> bool:
        return any(p.reason == batch_pb2.REASON_REFERENCE for p in self.message.prompts)

    @property
    def prompt_ids(self) -> list[str]:
        return [slot.prompt_id for slot in self.slots]

    @property
    def open_slots(self) -> list[Slot]:
        return [slot for slot in self.slots if not slot.is_closed]

    def takes(self, attempts: Sequence[Attempt]) -> bool:
        """Whether every slot has room for its attempts."""
        came = Counter(attempt.slot for attempt in attempts)
        return all(
            not self.slots[slot].is_closed
            and self.slots[slot].attempts + count <= self.slots[slot].allotted
            for slot, count in came.items()
        )


@dataclass
class Counts:
    """What a checkpoint keeps and a rollback brings back."""

    columns: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in (*COLUMNS, *REFERENCE_COLUMNS)}
    )
    served: dict[str, int] = field(default_factory=dict)
    """By prompt, the newest step at which it was served to a trainer."""
    groups: int = 0
    mixed: int = 0


@dataclass(frozen=True)
class Mark:
    """A kept checkpoint."""

    name: str
    step: int
    counts: Counts
    sequences: Mapping[str, int]
    fetched_ahead: Mapping[str, LeasedBatch]
    """Batches that were held at the checkpoint, by request_id."""


@dataclass
class Model:
    """The run."""

    pool: list[str] = field(default_factory=list)
    """By index."""
    counts: Counts = field(default_factory=Counts)
    batches: dict[str, LeasedBatch] = field(default_factory=dict)
    """Of the timeline, by request_id, also those that ended."""
    sequences: dict[str, int] = field(default_factory=dict)
    """Each trainer's and prober's number of its next request."""
    marks: list[Mark] = field(default_factory=list)
    fetched_ahead: Mapping[str, LeasedBatch] = field(default_factory=dict)
    """Those of the checkpoint from which the timeline began."""
    timeline: int = 0
    policy_step: int = 0
    policy: tuple[int, str] | None = None
    has_objective: bool = False
    group_size: int = 3
    window_steps: int = 1
    lease_ttl_s: int = 100

    def leases(self, now_s: int) -> dict[str, int]:
        """When each leased prompt's lease runs out."""
        return {
            slot.prompt_id: batch.expire_s
            for batch in self.batches.values()
            if batch.expire_s > now_s
            for slot in batch.open_slots
        }

    def free(self, now_s: int) -> set[str]:
        return set(self.pool) - self.leases(now_s).keys()

    def ttl_s(self, *, is_probe: bool) -> int:
        """How long a lease lasts."""
        return min(self.lease_ttl_s, PROBE_LEASE_S) if is_probe else self.lease_ttl_s

    def record_s(self, *, is_probe: bool = False) -> int:
        """For how long the store keeps a batch from its leasing on, and a report at least."""
        return 2 * self.ttl_s(is_probe=is_probe) + RECORD_GRACE_S

    def lease(
        self, message: batch_pb2.Batch, request: object, now_s: int, *, is_probe: bool
    ) -> LeasedBatch:
        """Note a batch that was leased now."""
        batch = LeasedBatch(
            message=message,
            request=request,
            is_probe=is_probe,
            slots=[Slot(p.prompt.prompt_id, p.attempt_count) for p in message.prompts],
            expire_s=message.lease_expire_time.seconds,
            gone_s=now_s + self.record_s(is_probe=is_probe),
        )
        self.batches[message.batch_id] = batch
        self.policy_step = max(self.policy_step, message.policy_step)
        if not is_probe:
            for slot in batch.slots:
                newest = self.counts.served.get(slot.prompt_id, -1)
                self.counts.served[slot.prompt_id] = max(newest, message.policy_step)
        return batch

    def report(
        self, batch: LeasedBatch, attempts: Sequence[Attempt], step: int
    ) -> batch_pb2.ReportReceipt:
        """Count attempts that the batch takes; the receipt that they must get."""
        completed = mixed = 0
        for attempt in attempts:
            slot = batch.slots[attempt.slot]
            if batch.is_of_reference:
                amounts = attempt.reference_amounts()
            else:
                amounts = attempt.amounts(is_probe=batch.is_probe, has_objective=self.has_objective)
            for name, amount in amounts.items():
                self.counts.columns[name][slot.prompt_id] += amount
            slot.attempts += 1
            slot.passes += attempt.passed
            if self.has_objective:
                slot.objectives.add(attempt.objective())
            if slot.attempts == slot.allotted:
                slot.is_closed = True
                completed += not batch.is_probe
                is_mixed = slot.is_mixed(has_objective=self.has_objective)
                mixed += is_mixed and not batch.is_probe
        self.counts.groups += completed
        self.counts.mixed += mixed
        self.policy_step = max(self.policy_step, step)
        return batch_pb2.ReportReceipt(
            attempt_count=len(attempts),
            pass_count=sum(attempt.passed for attempt in attempts),
            completed_group_count=completed,
            mixed_group_count=mixed,
        )

    def release(self, batch: LeasedBatch) -> int:
        """Close the batch; how many prompts are given back."""
        held, batch.is_released = batch.open_slots, True
        for slot in held:
            slot.is_closed = True
        return len(held)

    def checkpoint(self, name: str, step: int, now_s: int) -> None:
        held = {n: b for n, b in self.batches.items() if b.expire_s > now_s and b.open_slots}
        self.marks.append(
            Mark(name, step, copy.deepcopy(self.counts), dict(self.sequences), held)
        )  # fmt: skip

    def rollback(self, mark: Mark) -> None:
        """Back to the checkpoint; the pool, the configuration and their changes stay."""
        self.marks = self.marks[: self.marks.index(mark) + 1]
        self.counts = copy.deepcopy(mark.counts)
        self.sequences = dict(mark.sequences)
        self.fetched_ahead = mark.fetched_ahead
        self.batches = {}
        self.timeline += 1
        self.policy_step = mark.step
        if self.policy is not None and self.policy[0] > mark.step:
            self.policy = None
