"""Random lives of a run, through two servers, against a model in plain Python."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from curriculum_api.v1 import prompt_pb2
from tests.server.driving import refusal

GROUP_SIZE = 3
_numbers = itertools.count()


@dataclass
class Leased:
    """A batch, and by slot the rewards that were reported; None once it is closed."""

    batch: object
    slots: dict[int, list[float] | None]


@dataclass
class Model:
    """What must be true of the run."""

    pool: set[str] = field(default_factory=set)
    counts: dict[str, list[int]] = field(default_factory=dict)
    leased: set[str] = field(default_factory=set)
    groups: int = 0
    mixed: int = 0


def machine(drivers):
    """A state machine over runs that the drivers, one for each server, all see."""

    class RunMachine(RuleBasedStateMachine):
        batches = Bundle("batches")
        reports = Bundle("reports")

        def __init__(self):
            super().__init__()
            self.servers = drivers(f"interleaved-{next(_numbers)}")
            self.model = Model()
            self.step = 0
            self.add(6)

        def server(self, pick):
            return self.servers[pick % len(self.servers)]

        @rule(count=st.integers(1, 5), pick=st.integers(0, 1))
        def add_prompts(self, count, pick):
            self.add(count, pick)

        def add(self, count, pick=0):
            names = [f"n{len(self.model.pool) + i}" for i in range(count)]
            self.server(pick).add(
                prompt_pb2.Prompt(prompt_id=name, domain=name[-1]) for name in names
            )
            self.model.pool.update(names)

        @rule(
            target=batches,
            count=st.integers(1, 5),
            advance=st.integers(0, 2),
            probe=st.booleans(),
            pick=st.integers(0, 1),
        )
        def lease(self, count, advance, probe, pick):
            self.step += advance
            server = self.server(pick)
            ask = (lambda **fields: server.probes(**fields).batch) if probe else server.next
            batch = ask(count=count, step=self.step)
            served = [p.prompt.prompt_id for p in batch.prompts]
            free = self.model.pool - self.model.leased
            assert len(served) == len(set(served)) == min(count, len(free))
            assert set(served) <= free
            assert bool(batch.shortfall) == (len(served) < count)
            self.model.leased.update(served)
            return Leased(batch, {slot: [] for slot in range(len(served))})

        @rule(
            target=reports,
            leased=batches,
            rewards=st.lists(
                st.tuples(st.integers(0, 4), st.sampled_from([0.0, 1.0])), min_size=1, max_size=6
            ),
            pick=st.integers(0, 1),
        )
        def report(self, leased, rewards, pick):
            rows = [(slot, reward) for slot, reward in rewards if slot in leased.slots]
            if not rows:
                return multiple()
            added = {}
            for slot, reward in rows:
                added.setdefault(slot, []).append(reward)
            server = self.server(pick)
            request = server.report_request(leased.batch, added, policy_step=self.step)
            full = any(
                leased.slots[slot] is None or len(leased.slots[slot]) + len(new) > GROUP_SIZE
                for slot, new in added.items()
            )
            if full:
                self.must_be_refused(server, request)
                return multiple()
            receipt = server.stubs.trainer.ReportOutcomes(request).receipt
            self.count(leased, added, receipt)
            return request, receipt

        def must_be_refused(self, server, request):
            answer = refusal(server.stubs.trainer.ReportOutcomes, request)
            assert answer.status == "FAILED_PRECONDITION"

        def count(self, leased, added, receipt):
            completed = mixed = 0
            for slot, rewards in added.items():
                prompt_id = leased.batch.prompts[slot].prompt.prompt_id
                counts = self.model.counts.setdefault(prompt_id, [0, 0])
                counts[0] += len(rewards)
                counts[1] += int(sum(rewards))
                leased.slots[slot] += rewards
                if len(leased.slots[slot]) == GROUP_SIZE:
                    completed += 1
                    mixed += 0 < sum(leased.slots[slot]) < GROUP_SIZE
                    leased.slots[slot] = None
                    self.model.leased.discard(prompt_id)
            self.model.groups += completed
            self.model.mixed += mixed
            assert receipt.attempt_count == sum(map(len, added.values()))
            assert receipt.pass_count == sum(map(sum, added.values()))
            assert (receipt.completed_group_count, receipt.mixed_group_count) == (completed, mixed)
            assert not receipt.duplicate

        @rule(reported=reports, pick=st.integers(0, 1))
        def report_again(self, reported, pick):
            request, receipt = reported
            again = self.server(pick).stubs.trainer.ReportOutcomes(request).receipt
            assert again.duplicate
            assert again.attempt_count == receipt.attempt_count
            assert again.completed_group_count == receipt.completed_group_count

        @rule(leased=batches, pick=st.integers(0, 1))
        def release(self, leased, pick):
            held = [slot for slot, rewards in leased.slots.items() if rewards is not None]
            assert self.server(pick).release(leased.batch) == len(held)
            for slot in held:
                leased.slots[slot] = None
                self.model.leased.discard(leased.batch.prompts[slot].prompt.prompt_id)

        @precondition(lambda self: self.model.counts)
        @rule(pick=st.integers(0, 1))
        def compare_every_prompt(self, pick):
            shown = self.server(pick).counts()
            assert shown == {i: tuple(counts) for i, counts in self.model.counts.items()}

        @invariant()
        def the_statistics_are_the_models(self):
            one, other = (server.stats() for server in self.servers)
            assert one == other
            assert one.prompt_count == len(self.model.pool)
            assert one.leased_prompt_count == len(self.model.leased)
            assert (one.group_count, one.mixed_group_count) == (self.model.groups, self.model.mixed)
            assert one.attempt_count == sum(n for n, _ in self.model.counts.values())
            assert one.pass_count == sum(p for _, p in self.model.counts.values())

    return RunMachine


def test_any_interleaving_of_calls_counts_what_a_plain_model_counts(stubs, start_server, drive):
    other = start_server().stubs

    def drivers(run_id):
        first = drive(
            run_id,
            window_steps=2,
            selection={
                "group_size": GROUP_SIZE, "reach_share": 0, "reach_attempt_factor": 1},
        )  # fmt: skip
        return first, first.through(other)

    run_state_machine_as_test(
        machine(drivers),
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
