"""Which probes are handed out, to whom, and when a prompt has had enough."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from curriculum_api.errors import OverloadedError
from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_server.engine import probing
from curriculum_server.services import probe as probe_service
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


def test_a_prober_that_lags_a_window_behind_samples_a_sentinel_once(open_run):
    run = open_run(400, window_steps=5, selection={"rest_steps": 0})
    for step in (0, 20, 21):  # the last opens the window that the prober does not sample for
        run.play(step, count=1)
    sampled = Counter()
    for _ in range(20):  # 32 sentinels, and room for 5 in a batch
        batch = run.probes(count=400, rollout_budget=400, step=20).batch
        sentinels = [p for p in batch.prompts if p.reason == batch_pb2.REASON_SENTINEL]
        sampled.update(p.prompt.prompt_id for p in sentinels)
        if not batch.prompts:
            break
        report(run, batch, {p.slot: [1.0, 0.0] * (p.attempt_count // 2) for p in batch.prompts})
    assert set(sampled.values()) == {1}


# Policies that are too old, or are not the run's any more


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


def test_a_prober_with_weights_that_a_rollback_abandoned_gets_no_work(open_run):
    run = open_run(40, window_steps=5)
    run.play(10)
    run.checkpoint("c", 10)
    run.play(59)
    run.publish(59, "file:///weights")
    run.rollback("c")
    windows = run.stats().windows
    batch = run.probes(count=4, step=59).batch
    assert not batch.prompts
    assert batch.shortfall == (
        "policy_step=59: is ahead of the run, which was rolled back to step 10 and is at step 10"
    )
    # A window at step 59 would take what the trainer samples at all steps before it.
    assert run.stats().windows == windows
    assert len(run.probes(count=4, step=11).batch.prompts) == 4


# How long


def test_a_prober_that_was_killed_holds_its_prompts_for_minutes_and_not_for_an_hour(open_run):
    run = open_run(20, lease_ttl={"seconds": 3600})
    batch = run.probes(count=4, attempt_count=2).batch
    trainer_s = run.next(count=4, step=0).lease_expire_time.seconds
    assert 3478 <= trainer_s - batch.lease_expire_time.seconds <= 3482
    request = pr.RenewProbesRequest(
        run_id=run.run_id, batch_id=batch.batch_id, timeline=batch.timeline
    )
    renewed_s = run.stubs.probe.RenewProbes(request).lease_expire_time.seconds
    assert 3470 <= trainer_s - renewed_s <= 3482
    brief = open_run(20, lease_ttl={"seconds": 30})
    trainer_s = brief.next(count=4).lease_expire_time.seconds
    probes = brief.probes(count=4, attempt_count=2).batch
    assert -2 <= trainer_s - probes.lease_expire_time.seconds <= 2


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
    batch = run.probes(count=40, is_reference=True, rollout_budget=64 * 6).batch
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
        batch = gone_on.probes(count=40, is_reference=True, rollout_budget=64 * 16).batch
        sampled.update(p.prompt.prompt_id for p in batch.prompts)
        if batch.prompts:
            report(gone_on, batch, {p.slot: [0.0] * p.attempt_count for p in batch.prompts})
    assert set(sampled.values()) == {1}
    assert "have 64 attempts of the reference policy" in batch.shortfall


def test_what_was_leased_for_the_reference_policy_is_reported_as_that(gone_on):
    batch = gone_on.probes(
        count=2, is_reference=True
    ).batch  # 16 attempts in all, fewer than one wants
    assert [p.attempt_count for p in batch.prompts] == [16]
    request = gone_on.report_request(batch, {0: [1.0]}, kind=pr.ReportProbesRequest, policy_step=30)
    assert refusal(gone_on.stubs.probe.ReportProbes, request).details == (
        f"policy_step=30: must be 0: batch '{batch.batch_id}' was leased for the reference policy"
    )


def test_a_rollback_drops_what_the_reference_policy_was_sampled_after_it(gone_on):
    run = gone_on
    early = run.probes(count=1, is_reference=True).batch
    report(run, early, {0: [1.0] * 8})
    run.checkpoint("c", 30)
    late = run.probes(count=3, is_reference=True, rollout_budget=192).batch
    report(run, late, {p.slot: [0.0] * p.attempt_count for p in late.prompts})
    run.rollback("c")
    again = run.probes(count=40, is_reference=True, rollout_budget=64 * 40).batch
    lacking = {p.prompt.prompt_id: p.attempt_count for p in again.prompts}
    assert lacking[early.prompts[0].prompt.prompt_id] == 56
    assert {lacking[p.prompt.prompt_id] for p in late.prompts[1:]} == {64}


def test_at_the_start_the_reference_policy_is_the_policy(open_run):
    """What is counted at step 0 is of it, whoever made it; what it makes itself is kept apart."""
    run = open_run(20)
    batch = run.probes(count=20, step=0, attempt_count=8).batch
    report(run, batch, {p.slot: [1.0] * 4 + [0.0] * 4 for p in batch.prompts})
    own = run.probes(count=1, is_reference=True).batch
    assert [p.attempt_count for p in own.prompts] == [8]
    report(run, own, {0: [1.0] * 8})
    assert all(s.attempt_count == 8 for s in run.list().prompts)
    run.play(1, count=20, passes=8)
    # One prompt passed 12 of 16 times, the others half of the time.
    assert compare(run, [1]) == [(1, 20, pytest.approx((19 * 0.5 + 0.75) / 20), 1.0)]


def test_the_reference_policy_is_of_step_0(open_run):
    run = open_run(4)
    found = refusal(
        run.stubs.probe.LeaseProbes, lease(run, prompt_count=1, policy_step=3, is_reference=True)
    )
    assert found.details == "policy_step=3: must be 0 where is_reference is set"


def test_only_who_says_so_samples_the_reference_policy(gone_on):
    """A prober at step 0 may be one that will follow the run before it samples anything."""
    batch = gone_on.probes(count=40, step=0).batch
    assert not batch.prompts
    assert "is 30 steps behind the run" in batch.shortfall


# What is no trainer's group


def test_probes_are_no_groups_of_their_window(open_run):
    run = open_run(40)
    run.play(0, count=3)
    [before] = run.stats().windows
    batch = run.probes(count=5, attempt_count=8).batch
    receipt = report(run, batch, {p.slot: [1.0, 0.0] * 4 for p in batch.prompts}).receipt
    assert (receipt.attempt_count, receipt.completed_group_count) == (40, 0)
    [after] = run.stats().windows
    assert after.attempt_count == before.attempt_count + 40
    assert (after.group_count, after.mixed_group_count) == (3, 3)


def test_the_reference_policys_attempts_are_no_groups_of_the_day(gone_on):
    groups = [(w.group_count, w.mixed_group_count) for w in gone_on.stats().windows]
    batch = gone_on.probes(count=40, rollout_budget=64 * 6, is_reference=True).batch
    receipt = report(gone_on, batch, {p.slot: [1.0, 0.0] * 32 for p in batch.prompts}).receipt
    assert (receipt.attempt_count, receipt.completed_group_count) == (384, 0)
    assert [(w.group_count, w.mixed_group_count) for w in gone_on.stats().windows] == groups


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
    # 500 others, of which half are probed with 1,000 attempts: a twentieth is 1.6 times 32.
    run.add(prompt_pb2.Prompt(prompt_id=f"new-{n}", domain="d0") for n in range(500))
    reached = []
    while len(reached) < 2:
        batch = run.probes(count=560, rollout_budget=4000).batch
        reached = [p.slot for p in batch.prompts if p.reason == batch_pb2.REASON_PROBE_REACH]
        if len(reached) < 2:
            run.release(batch)
    answer = report(run, batch, {reached[0]: [1.0] * 8, reached[1]: [0.0] * 8})
    assert list(answer.settled_slots) == [reached[0]]


def test_a_report_that_was_counted_is_taken_though_nothing_can_be_said_of_its_prompts(
    open_run, monkeypatch
):
    async def overloaded(*_):
        raise OverloadedError("the pool is not read")

    monkeypatch.setattr(probing, "_beliefs", overloaded)
    run = open_run(8)
    batch = run.probes(count=2, attempt_count=8).batch
    answer = report(run, batch, {0: [0.0] * 8})
    assert (answer.receipt.attempt_count, list(answer.settled_slots)) == (8, [])
    assert list(run.counts().values()) == [(8, 0)]


def test_a_run_that_is_made_again_after_its_probes_were_counted_answers_as_before(
    open_run, start_server, monkeypatch
):
    """Its batch is looked up anew then, with the run's lock, which must not be held already."""
    run = open_run(8)
    other, settled_slots = run.through(start_server().stubs), probe_service.settled_slots

    async def be_overtaken(*arguments):
        await asyncio.to_thread(other.delete)
        await asyncio.to_thread(other.stubs.create_run, run.run_id)
        return await settled_slots(*arguments)

    monkeypatch.setattr(probe_service, "settled_slots", be_overtaken)
    batch = run.probes(count=2, attempt_count=8).batch
    request = run.report_request(batch, {0: [1.0] * 8}, kind=pr.ReportProbesRequest)
    answer = run.stubs.probe.ReportProbes(request, timeout=20)
    assert (answer.receipt.attempt_count, list(answer.settled_slots)) == (8, [])
    assert run.stats().attempt_count == 0
