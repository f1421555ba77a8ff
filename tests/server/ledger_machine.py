"""A run's life in random order, through two servers over a store whose clock the test moves.

After every call the store's raw columns, leases and checkpoints are compared with the model's. The
servers are looked at only now and then, for looking brings a server up to date, and most errors
hide in one that is not.
"""

from __future__ import annotations

import sys

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import trainer_service_pb2 as tr
from tests.server.ledger_calls import clients, kinds, picks, recent, rows
from tests.server.ledger_lifecycle import LedgerLifecycle, configs
from tests.server.ledger_model import Attempt, LeasedBatch
from tests.server.ledger_reading import check_batches, check_store, check_view
from tests.server.ledger_world import World, answers

PAUSE_S = 40
"""Leases last 100 or 140 s, so that none ever runs out within 20 s of a look at the clock."""
LONG_PAUSE_S = 5000
"""Longer than the store keeps batches and reports."""

STARTS = ("wait", "forget", "parts", "release", "report late", "lease late", "race")
LIVES_PER_SEED = 10
"""From the eleventh on hypothesis would mostly vary what it did before."""
SETTINGS = settings(
    max_examples=LIVES_PER_SEED,
    stateful_step_count=20,
    deadline=None,
    database=None,
    # Calls that race do not come out the same twice, so a life that failed is not made shorter.
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


class LedgerMachine(LedgerLifecycle):
    """All rules: also those of time, and of calls that meet."""

    @initialize(
        start=st.sampled_from(STARTS),
        rows=rows,
        kind=kinds,
        pick=picks,
    )
    def begin(self, start, rows, kind, pick):
        """Every life begins with something of which chance alone would make too little."""
        self.train("trainer-b", 3, rows, kind, pick)
        self.lease("prober", 3, 0, 1 - pick)
        if start == "wait":
            self.wait(1, 0, pick)
            self.wait(3, 0, pick)
        elif start == "forget":
            self.use_a_name_again(0, 3, rows, pick)
        elif start == "parts":
            self.report_in_parts(0, rows, kind, pick)
        elif start == "release":
            self.look(1 - pick)
            self.release(0, pick)
            self.look(1 - pick)
        elif start == "race":
            self.change_the_run_by_several_calls_at_once((1, 2), {"group_size": 2})
            self.two_batches_are_asked_for_at_once((2, 3), pick)
        else:
            self.checkpoint(0, pick)
            self.train("trainer-b", 3, rows, kind, pick)
            self.rollback(0, pick, rows, is_report=start == "report late")

    # Time, and servers that come and go

    @rule(pauses=st.integers(1, 4), which=recent, pick=picks)
    def wait(self, pauses, which, pick):
        self.move_clock(pauses * PAUSE_S)
        self.renew(which, pick)
        self.report_again(which, 1 - pick)

    @rule(which=recent, count=st.integers(1, 5), rows=rows, pick=picks)
    def use_a_name_again(self, which, count, rows, pick):
        """So much later that the batch and the reports of that name are forgotten."""
        batch = self.batch(which)
        for turn in range(2):
            self.report_attempts(batch, self.attempts_of(batch, rows[:1], set()), 0, turn)
        self.move_clock(LONG_PAUSE_S)
        self.lease("trainer-b", count, 0, pick)
        self.ask_again(which + 1, pick)
        for turn in range(2):
            self.report(0, rows, set(), 0, turn)

    def move_clock(self, seconds):
        self.world.valkey.move(seconds)
        # Servers read the store's clock together with its events, once a second by themselves.
        for pick in (0, 1):
            self.server(pick).get()

    @rule(pick=picks)
    def restart(self, pick):
        self.world.restart(pick)

    @rule(pick=picks)
    def look(self, pick):
        check_view(self.server(pick), self.model, self.now_s())

    # Calls that meet, through both servers at once

    @rule(which=recent, client=clients, count=st.integers(1, 5), pick=picks)
    def rollback_while_a_batch_is_asked_for(self, which, client, count, pick):
        if not self.model.marks:
            return
        now_s = self.now_s()
        low, free = self.open_from(), self.model.free(now_s)
        rollback = self.rollback_request(which)
        request = self.batch_request(client, count, self.model.policy_step)
        rolled, leased = answers(
            (self.server(pick + 1).stubs.trainer.Rollback, rollback),
            (self.leasing(request, pick), request),
        )
        self.rolled_back(rollback, rolled)
        if isinstance(leased, str):
            assert leased == "INVALID_ARGUMENT"
            assert request.policy_step < max(low, self.open_from())
        elif leased.batch.timeline == self.model.timeline:
            self.leased(leased.batch, request, now_s)
        else:
            assert {p.prompt.prompt_id for p in leased.batch.prompts} <= free

    @rule(which=recent, rows=rows, pick=picks)
    def rollback_while_a_report_comes(self, which, rows, pick):
        batch = self.batch(which)
        attempts = self.attempts_of(batch, rows, {"graded"})
        if not attempts or not self.model.marks:
            return
        rollback = self.rollback_request(which)
        request = self.report_request(batch, attempts, self.model.policy_step)
        rolled, _ = answers(
            (self.server(pick + 1).stubs.trainer.Rollback, rollback),
            (self.reporting(request, pick), request),
        )
        # Whether it was refused, or counted and then dropped: it is gone.
        self.rolled_back(rollback, rolled)

    @rule(counts=st.tuples(st.integers(1, 3), st.integers(1, 3)), config=configs)
    def change_the_run_by_several_calls_at_once(self, counts, config):
        requests = [
            op.AddPromptsRequest(run_id=self.run_id, prompts=self.new_prompts(count))
            for count in counts
        ]
        one, other = (self.server(pick).stubs.operator for pick in (0, 1))
        changed = answers(
            (one.AddPrompts, requests[0]),
            (other.UpdateRun, self.update_request(config)),
            (other.AddPrompts, requests[1]),
        )
        assert not [response for response in changed if isinstance(response, str)]
        # Their order was not ours to say.
        known = [state.prompt_id for state in self.server(0).list().prompts]
        assert sorted(known) == sorted(self.model.pool)
        self.model.pool = known

    @rule(client=clients, count=st.integers(1, 5), pick=picks)
    def one_batch_is_asked_for_through_both(self, client, count, pick):
        request, now_s = self.batch_request(client, count, self.model.policy_step), self.now_s()
        if request.policy_step >= self.open_from():
            one, other = answers(*((self.leasing(request, p), request) for p in (pick, pick + 1)))
            assert one == other
            self.leased(one.batch, request, now_s)

    @rule(counts=st.tuples(*[st.integers(1, 5)] * 2), pick=picks)
    def two_batches_are_asked_for_at_once(self, counts, pick):
        step, now_s = self.model.policy_step, self.now_s()
        requests = [
            self.batch_request(name, count, step)
            for name, count in zip(("trainer-a", "trainer-b"), counts, strict=True)
        ]
        is_ahead = any(request.request_id in self.model.fetched_ahead for request in requests)
        if is_ahead or step < self.open_from():
            return
        made = answers(*((self.leasing(r, pick + i), r) for i, r in enumerate(requests)))
        # Whichever was first had all that is free to choose from.
        size = len(made[0].batch.prompts)
        first = 0 if size == min(counts[0], len(self.model.free(now_s))) else 1
        for i in (first, 1 - first):
            self.leased(made[i].batch, requests[i], now_s)

    @rule(which=recent, rows=rows, kind=kinds, pick=picks)
    def one_report_comes_through_both(self, which, rows, kind, pick):
        batch, step = self.batch(which), self.model.policy_step
        attempts = self.attempts_of(batch, rows, kind)
        if not self.is_reportable(batch, attempts, step):
            return
        request = self.report_request(batch, attempts, step)
        both = answers(*((self.reporting(request, p), request) for p in (pick, pick + 1)))
        first, again = sorted((one.receipt for one in both), key=lambda r: r.duplicate)
        receipt = self.model.report(batch, attempts, step)
        assert first == receipt
        assert again.duplicate
        self.reports.append((batch, request, receipt))

    @rule(which=recent, one=rows, other=rows, pick=picks)
    def two_reports_of_one_batch_come_at_once(self, which, one, other, pick):
        batch, step = self.batch(which), self.model.policy_step
        parts = [self.attempts_of(batch, drawn, {"graded"}) for drawn in (one, other)]
        if not self.is_reportable(batch, [*parts[0], *parts[1]], step):
            return
        requests = [self.report_request(batch, part, step) for part in parts]
        calls = [self.reporting(request, pick + i) for i, request in enumerate(requests)]
        made = [response.receipt for response in answers(*zip(calls, requests, strict=True))]
        # Which of the two completes a group is not ours to say.
        expected = [self.model.report(batch, part, step) for part in parts]
        for name in ("attempt", "pass", "completed_group", "mixed_group"):
            sums = [sum(getattr(r, f"{name}_count") for r in rs) for rs in (made, expected)]
            assert sums[0] == sums[1]

    @rule(which=recent, rows=rows, pick=picks)
    def a_batch_is_given_back_while_it_is_reported(self, which, rows, pick):
        batch, step = self.batch(which), self.model.policy_step
        attempts = self.attempts_of(batch, rows, set())
        if not self.is_reportable(batch, attempts, step):
            return
        request = self.report_request(batch, attempts, step)
        release = tr.ReleaseBatchRequest(
            run_id=self.run_id, batch_id=batch.message.batch_id, timeline=batch.message.timeline
        )
        reported, released = answers(
            (self.reporting(request, pick), request),
            (self.server(pick + 1).stubs.trainer.ReleaseBatch, release),
        )
        if reported != "FAILED_PRECONDITION":
            assert reported.receipt == self.model.report(batch, attempts, step)
        assert released.released_count == self.model.release(batch)

    def is_reportable(self, batch: LeasedBatch, attempts: list[Attempt], step: int) -> bool:
        """Whether attempts of this step must be counted."""
        is_taken = self.is_current(batch) and bool(attempts) and batch.takes(attempts)
        return is_taken and step >= self.open_from()

    # What must always be so

    @invariant()
    def the_store_holds_what_the_model_does(self):
        check_store(self.world.client, self.run_id, self.model, self.now_s())

    def teardown(self):
        """At the end: the servers show the same, and so does one that starts now."""
        if sys.exc_info()[0] is not None:
            return  # a rule failed, and that is what is to be seen
        now_s = self.now_s()
        check_batches(self.world.client, self.run_id, self.model, now_s)
        with self.world.newcomer(self.run_id) as newcomer:
            views = [server.seen() for server in (newcomer, self.server(0), self.server(1))]
            check_view(newcomer, self.model, now_s)
        assert views[0] == views[1] == views[2]


def live(world: World, lives: int, first_seed: int = 0) -> None:
    """Live so many lives over these servers, the same ones for the same seed.

    Raises:
        AssertionError: the store or a server differs from the model.
    """
    for number in range(first_seed, first_seed + lives, LIVES_PER_SEED):
        # Every other seed's runs have an objective.
        life = {"world": world, "has_objective": number // LIVES_PER_SEED % 2 == 1}
        machine = seed(number)(type("Machine", (LedgerMachine,), life))
        run_state_machine_as_test(machine, settings=SETTINGS)
