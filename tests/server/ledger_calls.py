"""What trainers and probers do all day, as rules: leasing, reporting, giving back, renewing.

Every call is made of a server and of the model, and has to be answered as the model says. Rules
take numbers, not bundles: what hypothesis draws must not depend on who wins a race.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from curriculum_api.v1 import batch_pb2, prompt_pb2
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import trainer_service_pb2 as tr
from tests.server.driving import RunDriver
from tests.server.ledger_model import (
    BINARY_REWARDS,
    CHANNEL,
    CHANNEL_VALUES,
    GRADED_REWARDS,
    UNUSED_REWARD,
    Attempt,
    LeasedBatch,
    Model,
)
from tests.server.ledger_reading import StoredRun
from tests.server.ledger_world import World, answer

OPEN_WINDOWS = 8

picks = st.integers(0, 1)
recent = st.integers(0, 7)
"""Which batch or report, from the newest on."""
clients = st.sampled_from(["trainer-a", "trainer-b", "prober", "reference"])
lags = st.integers(-3, 2)
"""How many policy steps behind the newest a call is."""
rows = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(GRADED_REWARDS),
        st.integers(0, 1000),
        st.sampled_from(CHANNEL_VALUES),
    ),
    min_size=1,
    max_size=8,
)
kinds = st.sets(st.sampled_from(["graded", "tokens", "clarity"]))
"""What of a drawn row is given."""


class LedgerCalls(RuleBasedStateMachine):
    """The run, its model and the calls of every step."""

    world: World
    has_objective = False

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(has_objective=self.has_objective)
        self.run_id = self.world.create_run(self.model)
        self.numbers = itertools.count()
        self.batches: list[LeasedBatch] = []
        """Of every timeline, oldest first."""
        self.reports: list[tuple[LeasedBatch, Any, batch_pb2.ReportReceipt]] = []
        """Reports that were counted, their requests and receipts."""
        self.add_prompts(8, 0)
        self.lease_by(self.batch_request("trainer-a", 4, 0), 0)

    @initialize(steps=st.integers(0, 12), rows=rows)
    def earlier_life(self, steps, rows):
        """Enough of it that some windows take no counts any more."""
        for step in range(steps):
            self.lease("trainer-a", 1 + step % 3, -1, step % 2)
            self.finish(0, rows[step % len(rows) :] + rows, set(), 0, step // 2 % 2)

    def server(self, pick: int) -> RunDriver:
        return self.world.server(self.run_id, pick)

    def now_s(self) -> int:
        return self.world.valkey.now_s()

    def open_from(self) -> int:
        """The oldest policy step that is taken."""
        windows = StoredRun(self.world.client, self.run_id).document.windows
        return windows[-OPEN_WINDOWS:][0].first_step

    def add_prompts(self, count: int, pick: int) -> None:
        self.server(pick).add(self.new_prompts(count))

    def new_prompts(self, count: int) -> list[prompt_pb2.Prompt]:
        """Prompts to add, which the model has in its pool from here on."""
        names = [f"p{len(self.model.pool) + i}" for i in range(count)]
        self.model.pool += names
        return [prompt_pb2.Prompt(prompt_id=name, domain=f"d{name[-1]}") for name in names]

    def batch(self, which: int) -> LeasedBatch:
        return self.batches[-1 - which % len(self.batches)]

    def is_current(self, batch: LeasedBatch) -> bool:
        """Whether the batch is kept, on this timeline."""
        known = self.model.batches.get(batch.message.batch_id)
        return known is batch and self.now_s() < batch.gone_s

    def is_superseded(self, batch: LeasedBatch) -> bool:
        """Whether another batch has its name, which was free again once it was forgotten."""
        known = self.model.batches.get(batch.message.batch_id)
        return batch.message.timeline == self.model.timeline and known is not batch

    # Batches

    def batch_request(
        self, client: str, count: int, step: int, number: int | None = None
    ) -> object:
        """The client's next request, or that of another number."""
        number = self.model.sequences.get(client, 0)
        while f"{client}-{number}" in self.model.batches:
            number += 1
        self.model.sequences[client] = number + 1
        name = {"run_id": self.run_id, "request_id": f"{client}-{number}", "prompt_count": count}
        if client == "reference":
            return pr.LeaseProbesRequest(**name, attempt_count=2, is_reference=True)
        if client == "prober":
            return pr.LeaseProbesRequest(**name, attempt_count=2, policy_step=max(0, step))
        return tr.NextBatchRequest(**name, policy_step=max(0, step))

    def ask(self, request: object, pick: int) -> object:
        """The request's batch, or the status with which it is refused."""
        response = answer(self.leasing(request, pick), request)
        return response if isinstance(response, str) else response.batch

    def leasing(self, request, pick):
        stubs = self.server(pick).stubs
        is_probe = isinstance(request, pr.LeaseProbesRequest)
        return stubs.probe.LeaseProbes if is_probe else stubs.trainer.NextBatch

    @rule(client=clients, count=st.integers(1, 5), lag=lags, pick=picks)
    def lease(self, client, count, lag, pick):
        self.lease_by(self.batch_request(client, count, self.model.policy_step - lag), pick)

    def lease_by(self, request, pick):
        now_s, low = self.now_s(), self.open_from()
        batch = self.ask(request, pick)
        step, is_probe = request.policy_step, isinstance(request, pr.LeaseProbesRequest)
        if is_probe and request.is_reference:
            assert {p.reason for p in batch.prompts} <= {batch_pb2.REASON_REFERENCE}
            self.leased(batch, request, now_s)
        elif is_probe and step < low:
            assert (list(batch.prompts), "is too old" in batch.shortfall) == ([], True)
        elif step < low:
            assert batch == "INVALID_ARGUMENT"
        else:
            self.leased(batch, request, now_s)

    def leased(self, batch, request, now_s):
        """Note a batch that was made of prompts that were free."""
        model = self.model
        served = [p.prompt.prompt_id for p in batch.prompts]
        free = model.free(now_s)
        assert set(served) <= free
        ahead = model.fetched_ahead.get(request.request_id)
        if ahead is None or ahead.request != request or not free.issuperset(ahead.prompt_ids):
            assert len(set(served)) == len(served) == min(request.prompt_count, len(free))
            assert bool(batch.shortfall) == (len(served) < request.prompt_count)
        else:
            assert list(batch.prompts) == list(ahead.message.prompts)
        assert [p.slot for p in batch.prompts] == list(range(len(served)))
        assert {p.attempt_count for p in batch.prompts} <= {2, 3}
        assert (batch.batch_id, batch.timeline) == (request.request_id, model.timeline)
        is_probe = isinstance(request, pr.LeaseProbesRequest)
        ttl_s = model.ttl_s(is_probe=is_probe)
        assert 0 <= batch.lease_expire_time.seconds - now_s - ttl_s <= 2
        self.batches.append(model.lease(batch, request, now_s, is_probe=is_probe))

    @rule(which=recent, pick=picks)
    def ask_again(self, which, pick):
        batch = self.batch(which)
        if self.is_superseded(batch):
            return
        request = type(batch.request)()
        request.CopyFrom(batch.request)
        if self.is_current(batch):
            again = self.ask(request, pick)
            assert again.lease_expire_time.seconds == batch.expire_s
            again.lease_expire_time.CopyFrom(batch.message.lease_expire_time)
            assert again == batch.message
            request.prompt_count += 1
            assert self.ask(request, pick) == "ALREADY_EXISTS"
        elif batch.message.timeline == self.model.timeline:
            self.lease_by(request, pick)  # its name is free again
        elif not batch.is_probe:
            request.timeline = batch.message.timeline
            assert self.ask(request, pick) == "ABORTED"

    @rule(which=recent, pick=picks)
    def ask_as_before_the_checkpoint(self, which, pick):
        """What trainers that look ahead do after a rollback."""
        ahead = [
            b for name, b in self.model.fetched_ahead.items() if name not in self.model.batches
        ]
        if ahead:
            self.lease_by(ahead[which % len(ahead)].request, pick)

    @rule(which=recent, pick=picks)
    def release(self, which, pick):
        batch = self.batch(which)
        name = batch.message.batch_id
        request = tr.ReleaseBatchRequest(
            run_id=self.run_id, batch_id=name, timeline=batch.message.timeline
        )
        if self.is_superseded(batch):
            return
        response = answer(self.server(pick).stubs.trainer.ReleaseBatch, request)
        refusals = self.refusals_of(batch)
        if refusals:
            assert response in refusals
        else:
            assert response.released_count == self.model.release(batch)

    @rule(which=recent, pick=picks)
    def renew(self, which, pick):
        batch = self.batch(which)
        name, model = batch.message.batch_id, self.model
        request = pr.RenewProbesRequest(
            run_id=self.run_id, batch_id=name, timeline=batch.message.timeline
        )
        if self.is_superseded(batch):
            return
        now_s = self.now_s()
        response = answer(self.server(pick).stubs.probe.RenewProbes, request)
        refusals = self.refusals_of(batch)
        if refusals:
            assert response in refusals
        elif batch.is_released or batch.expire_s <= now_s:
            assert response.held_count == 0
        else:
            assert response.held_count == len(batch.open_slots)
            batch.expire_s = response.lease_expire_time.seconds
            assert 0 <= batch.expire_s - now_s - model.ttl_s(is_probe=batch.is_probe) <= 2
            batch.gone_s = now_s + model.record_s(is_probe=batch.is_probe)

    def refusals_of(self, batch):
        """The statuses with which calls about the batch may be refused; none if they must not."""
        refusals = set()
        if self.now_s() >= batch.gone_s:
            refusals.add("NOT_FOUND")
        if batch.message.timeline < self.model.timeline:
            refusals.add("ABORTED")
        return refusals

    # Reports

    def report_request(self, batch, attempts, step):
        outcomes = batch_pb2.Outcomes(
            slots=[a.slot for a in attempts],
            rewards=[a.reward for a in attempts],
            token_counts=[a.tokens for a in attempts if a.tokens is not None],
        )
        if attempts[0].clarity is not None:
            outcomes.channels[CHANNEL].values.extend(a.clarity for a in attempts)
        kind = pr.ReportProbesRequest if batch.is_probe else tr.ReportOutcomesRequest
        return kind(
            run_id=self.run_id,
            request_id=f"report-{next(self.numbers)}",
            batch_id=batch.message.batch_id,
            timeline=batch.message.timeline,
            policy_step=max(0, step),
            outcomes=outcomes,
        )

    def reporting(self, request, pick):
        stubs = self.server(pick).stubs
        is_probe = isinstance(request, pr.ReportProbesRequest)
        return stubs.probe.ReportProbes if is_probe else stubs.trainer.ReportOutcomes

    def send(self, request, pick):
        """The report's receipt, or the status with which it is refused."""
        response = answer(self.reporting(request, pick), request)
        return response if isinstance(response, str) else response.receipt

    def attempts_of(self, batch, rows, kind):
        """Attempts of the batch's slots; `kind` says which of their columns are given beside what
        the objective needs."""
        count, has_clarity = len(batch.slots), "clarity" in kind or self.has_objective
        return [
            Attempt(
                slot % count,
                reward if "graded" in kind else BINARY_REWARDS[reward > 0],
                tokens if "tokens" in kind else None,
                clarity if has_clarity else None,
            )
            for slot, reward, tokens, clarity in rows
            if batch.slots
        ]

    @rule(which=recent, rows=rows, kind=kinds, lag=lags, pick=picks)
    def report(self, which, rows, kind, lag, pick):
        batch = self.batch(which)
        attempts = self.attempts_of(batch, rows, kind)
        self.report_attempts(batch, attempts, lag, pick)
        # Afterwards, since a server reads a batch again before it refuses a report.
        if self.has_objective and "clarity" not in kind:
            self.report_without_what_the_objective_needs(batch, attempts, pick)

    def report_without_what_the_objective_needs(self, batch, attempts, pick):
        if not attempts or self.is_superseded(batch):
            return
        lacking = [replace(attempt, clarity=None) for attempt in attempts]
        request = self.report_request(batch, lacking, self.model.policy_step)
        assert self.send(request, pick) in {"INVALID_ARGUMENT", *self.refusals_of(batch)}

    @rule(which=recent, rows=rows, kind=kinds, pick=picks)
    def report_in_parts(self, which, rows, kind, pick):
        """Reward workers report an attempt at a time, by turns to both servers, and one twice."""
        batch = self.batch(which)
        for turn, attempt in enumerate(self.attempts_of(batch, rows, kind)):
            self.report_attempts(batch, [attempt], 0, pick + turn)
        self.report_again(0, pick)

    @rule(which=recent, rows=rows, kind=kinds, lag=lags, pick=picks)
    def finish(self, which, rows, kind, lag, pick):
        """All that is missing of a batch."""
        batch = self.batch(which)
        left = [
            slot
            for slot, state in enumerate(batch.slots)
            for _ in range(0 if state.is_closed else state.allotted - state.attempts)
        ]
        drawn = [(slot, *row[1:]) for slot, row in zip(left, itertools.cycle(rows), strict=False)]
        self.report_attempts(batch, self.attempts_of(batch, drawn, kind), lag, pick)

    def report_attempts(self, batch, attempts, lag, pick):
        if not attempts or self.is_superseded(batch):
            return
        step = 0 if batch.is_of_reference else max(0, self.model.policy_step - lag)
        request = self.report_request(batch, attempts, step)
        low = self.open_from()
        receipt = self.send(request, pick)
        refusals = self.refusals_of(batch)
        if not refusals and not batch.takes(attempts):
            refusals = {"FAILED_PRECONDITION"}
        if not refusals and step < low and not batch.is_of_reference:
            refusals = {"INVALID_ARGUMENT"}
        if refusals:
            assert receipt in refusals
        else:
            assert receipt == self.model.report(batch, attempts, step)
            self.reports.append((batch, request, receipt))

    @rule(client=clients, count=st.integers(1, 5), rows=rows, kind=kinds, pick=picks)
    def train(self, client, count, rows, kind, pick):
        """A whole step, reported when the policy has moved on."""
        self.lease(client, count, 0, pick)
        self.finish(0, rows, kind, -1, pick)

    @rule(which=recent, pick=picks)
    def report_again(self, which, pick):
        if not self.reports:
            return
        batch, request, receipt = self.reports[-1 - which % len(self.reports)]
        if self.is_superseded(batch):
            return
        again = self.send(request, pick)
        refusals = self.refusals_of(batch)
        if isinstance(again, str):
            assert again in refusals
        else:
            # What is kept of a report may outlive its batch, but not a rollback.
            assert "ABORTED" not in refusals
            assert again.duplicate
            again.duplicate = False
            assert again == receipt
        if not refusals:
            other = type(request)()
            other.CopyFrom(request)
            other.outcomes.rewards[0] = UNUSED_REWARD
            assert self.send(other, pick) == "ALREADY_EXISTS"
