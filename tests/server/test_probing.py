"""Which probes are handed out, to whom, and when a prompt has had enough."""

from __future__ import annotations

from collections import Counter

import pytest

from curriculum_api.v1 import batch_pb2, run_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from tests.server.driving import refusal


def reasons(batch):
    return Counter(batch_pb2.Reason.Name(p.reason)[len("REASON_") :] for p in batch.prompts)


def lease(run, **fields):
    """A request with nothing but what is given."""
    return pr.LeaseProbesRequest(run_id=run.run_id, request_id="r", **fields)


def report(run, batch, groups, **fields):
    request = run.report_request(batch, groups, kind=pr.ReportProbesRequest, **fields)
    return run.stubs.probe.ReportProbes(request)


def test_attempts_are_as_many_as_they_are_worth_within_the_budget(open_run):
    run = open_run(200)
    batch = run.probes(count=100, rollout_budget=120).batch
    attempts = [p.attempt_count for p in batch.prompts]
    assert 110 <= sum(attempts) <= 120
    assert set(attempts) <= {4, 8}
    assert set(reasons(batch)) <= {"PROBE", "SENTINEL"}
    assert batch.shortfall == ""


def test_without_a_budget_there_is_one_of_a_group_for_each_prompt(open_run):
    run = open_run(200, selection={"group_size": 5})
    attempts = [p.attempt_count for p in run.probes(count=100).batch.prompts]
    assert (len(attempts), 400 <= sum(attempts) <= 500) == (100, True)


def test_a_number_of_attempts_and_a_budget_exclude_each_other(open_run):
    run = open_run(4)
    call = run.stubs.probe.LeaseProbes
    fields = {"prompt_count": 2, "attempt_count": 3, "rollout_budget": 6}
    assert refusal(call, lease(run, **fields)).details == (
        "rollout_budget=6: must be absent where attempt_count=3 is given"
    )
    for value in (0, 2**20 + 1):
        found = refusal(call, lease(run, prompt_count=2, rollout_budget=value))
        assert found.details == f"rollout_budget={value}: must be in [1, 1048576]"
    assert run.list().prompts[0].HasField("lease_expire_time") is False


def test_who_is_sure_is_not_probed_and_the_worker_is_told(open_run):
    run = open_run(20)
    for _ in range(8):
        batch = run.probes(count=20, attempt_count=16).batch
        report(run, batch, {p.slot: [0.0] * 16 for p in batch.prompts})
    batch = run.probes(count=20).batch
    # A long shot now and then: what nobody tries is never found to have become possible.
    assert set(reasons(batch)) <= {"PROBE_REACH"}
    assert "attempts at the others would tell next to nothing" in batch.shortfall


def test_sentinels_are_sampled_in_every_window(open_run):
    run = open_run(400, window_steps=5, selection={"rest_steps": 0})
    seen = []
    for step in (0, 1, 6, 7):
        found = set()
        for _ in range(20):
            batch = run.probes(count=400, rollout_budget=400, step=step).batch
            sentinels = [p for p in batch.prompts if p.reason == batch_pb2.REASON_SENTINEL]
            found |= {p.prompt.prompt_id for p in sentinels}
            if batch.prompts:
                rewards = {p.slot: [1.0, 0.0] * (p.attempt_count // 2) for p in batch.prompts}
                report(run, batch, rewards)
        seen.append(found)
        run.play(step + 1, count=1)
    # 16 of both domains, some of which were sampled enough for another reason. Window 0 is step 0
    # alone; 1 to 5 and 6 to 10 are the next ones.
    assert len(set.union(*seen)) <= 32
    assert min(map(len, seen[:3])) > 16
    assert seen[3] == set()


# Policies that are too old


def test_a_prober_that_is_too_far_behind_gets_no_work_and_is_told_why(open_run):
    run = open_run(40, max_policy_lag=3, window_steps=5)
    run.play(10)
    run.publish(10, "file:///weights")
    answer = run.probes(count=4, step=6)
    assert answer.batch.shortfall == (
        "policy_step=6: is 4 steps behind the newest published policy, at step 10, and the run's "
        "max_policy_lag is 3"
    )
    assert not answer.batch.prompts
    assert answer.policy == run_pb2.Policy(policy_step=10, uri="file:///weights")
    assert all(not s.HasField("lease_expire_time") for s in run.list().prompts)
    assert len(run.probes(count=4, step=7).batch.prompts) == 4


def test_what_counts_is_what_was_published_and_without_it_the_run(open_run):
    run = open_run(40, max_policy_lag=3, window_steps=5)
    run.play(20)
    assert "behind the run, at step 20" in run.probes(count=4, step=16).batch.shortfall
    run.publish(15, "file:///weights")
    assert len(run.probes(count=4, step=12).batch.prompts) == 4  # it cannot know any newer ones
    run.update(max_policy_lag=2)
    assert "max_policy_lag is 2" in run.probes(count=4, step=12).batch.shortfall


def test_without_a_limit_reports_must_still_be_taken(open_run):
    run = open_run(40, window_steps=1)
    for step in range(1, 15):
        run.play(step, count=1)
    batch = run.probes(count=4, step=5).batch
    assert batch.shortfall == "policy_step=5: is too old, windows before step 7 are closed"
    assert len(run.probes(count=4, step=7).batch.prompts) == 4


def test_a_batch_is_repeated_when_its_policy_has_become_too_old(open_run):
    run = open_run(40, max_policy_lag=3)
    first = run.probes("again", count=4, step=1)
    run.publish(9, "file:///weights")
    assert run.probes("again", count=4, step=1).batch == first.batch


# The reference policy


def compare(run, ks):
    request = op.CompareBoundaryRequest(
        run_id=run.run_id,
        before={"first_policy_step": 0, "last_policy_step": 0},
        after={"first_policy_step": 1, "last_policy_step": 2**64 - 1},
        ks=ks,
    )
    points = run.stubs.operator.CompareBoundary(request).points
    return [(p.k, p.prompt_count, p.before_pass_at_k, p.after_pass_at_k) for p in points]


@pytest.fixture
def gone_on(open_run):
    """A run at step 30, whose first windows take counts no more."""
    run = open_run(40, window_steps=1, selection={"rest_steps": 0}, max_policy_lag=2)
    for step in range(20, 31):
        run.play(step, count=4, passes=4)
    return run


def test_the_reference_policy_is_sampled_for_the_boundary_alone(gone_on, start_server):
    run = gone_on
    before = {s.prompt_id: s.pass_rate for s in run.list().prompts}
    assert compare(run, [1]) == [(1, 0, 0.0, 0.0)]
    batch = run.probes(count=40, step=0, rollout_budget=64 * 6).batch
    assert set(reasons(batch)) == {"REFERENCE"}
    assert {p.attempt_count for p in batch.prompts} == {64}
    assert len(batch.prompts) == 6
    # Too many to be settled, and still all of them are wanted.
    answer = report(run, batch, {p.slot: [1.0] * 16 + [0.0] * 48 for p in batch.prompts})
    assert (answer.receipt.attempt_count, list(answer.settled_slots)) == (384, [])
    states = run.list().prompts
    assert {s.prompt_id: s.pass_rate for s in states} == before
    assert all(s.attempt_count < 64 for s in states)
    sampled = {p.prompt.prompt_id for p in batch.prompts}
    both = sampled & {s.prompt_id for s in states if s.attempt_count}
    other = run.through(start_server().stubs)  # one that reads what this one has followed
    for server in (run, other):
        [(_, count, share, _)] = compare(server, [1])
        assert (count, share) == (len(both), pytest.approx(0.25 if both else 0.0))


def test_the_reference_policy_needs_no_more_than_64_attempts(gone_on):
    sampled = Counter()
    for _ in range(8):
        batch = gone_on.probes(count=40, step=0, rollout_budget=64 * 16).batch
        sampled.update(p.prompt.prompt_id for p in batch.prompts)
        if batch.prompts:
            report(gone_on, batch, {p.slot: [0.0] * p.attempt_count for p in batch.prompts})
    assert set(sampled.values()) == {1}
    assert "have 64 attempts of the reference policy" in batch.shortfall


def test_what_was_leased_for_the_reference_policy_is_reported_as_that(gone_on):
    batch = gone_on.probes(count=2, step=0).batch  # 16 attempts in all, fewer than one wants
    assert [p.attempt_count for p in batch.prompts] == [16]
    request = gone_on.report_request(batch, {0: [1.0]}, kind=pr.ReportProbesRequest, policy_step=30)
    assert refusal(gone_on.stubs.probe.ReportProbes, request).details == (
        f"policy_step=30: must be 0: batch '{batch.batch_id}' was leased for the reference policy"
    )


def test_a_rollback_drops_what_the_reference_policy_was_sampled_after_it(gone_on):
    run = gone_on
    early = run.probes(count=1, step=0).batch
    report(run, early, {0: [1.0] * 8})
    run.checkpoint("c", 30)
    late = run.probes(count=3, step=0, rollout_budget=192).batch
    report(run, late, {p.slot: [0.0] * p.attempt_count for p in late.prompts})
    run.rollback("c")
    again = run.probes(count=40, step=0, rollout_budget=64 * 40).batch
    lacking = {p.prompt.prompt_id: p.attempt_count for p in again.prompts}
    assert lacking[early.prompts[0].prompt.prompt_id] == 56
    assert {lacking[p.prompt.prompt_id] for p in late.prompts[1:]} == {64}


def test_at_the_start_the_reference_policy_is_the_policy(open_run):
    run = open_run(20)
    batch = run.probes(count=20, step=0, attempt_count=8).batch
    report(run, batch, {p.slot: [1.0] * 4 + [0.0] * 4 for p in batch.prompts})
    assert all(s.attempt_count == 8 for s in run.list().prompts)
    run.play(1, count=5, passes=8)
    assert compare(run, [1]) == [(1, 5, pytest.approx(0.5), 1.0)]


# When a prompt has had enough


def test_a_report_tells_whose_band_is_settled(open_run, start_server):
    run = open_run(100)
    batch = run.probes(count=100, attempt_count=128).batch
    sentinel = next(p.slot for p in batch.prompts if p.reason == batch_pb2.REASON_SENTINEL)
    probed = [p.slot for p in batch.prompts if p.reason == batch_pb2.REASON_PROBE]
    sure, edge, barely = probed[:3]
    rewards = {sure: [0.0] * 64, edge: [1.0, 0.0] * 8, barely: [0.0] * 2, sentinel: [0.0] * 64}
    first = run.report_request(batch, rewards, kind=pr.ReportProbesRequest)
    answer = run.stubs.probe.ReportProbes(first)
    assert list(answer.settled_slots) == sorted([sure, edge])  # the sentinel is never over
    again = start_server().stubs.probe.ReportProbes(first)  # of another server, which did not lease
    assert again.receipt.duplicate
    assert list(again.settled_slots) == sorted([sure, edge])
    # 64 fails, and as many passes: it was hopeless, and is at the edge.
    later = report(run, batch, {sure: [1.0] * 64})
    assert list(later.settled_slots) == [sure]


def test_beyond_the_edge_only_a_pass_ends_it(open_run):
    run = open_run(60)
    for _ in range(2):
        batch = run.probes(count=60, attempt_count=16).batch
        report(run, batch, {p.slot: [0.0] * 16 for p in batch.prompts})
    batch = run.probes(count=200, rollout_budget=2000).batch
    first, second, *_ = [p.slot for p in batch.prompts if p.reason == batch_pb2.REASON_PROBE_REACH]
    answer = report(run, batch, {first: [1.0] * 8, second: [0.0] * 8})
    assert list(answer.settled_slots) == [first]
