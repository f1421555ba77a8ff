"""Batches: the same request gets the same batch, and no prompt is in two of them."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.protobuf.duration_pb2 import Duration

from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2
from curriculum_api.v1 import probe_service_pb2 as pr

SHORT = Duration(seconds=2)
"""The store counts in whole seconds, so such a lease lasts for one to two."""


def ids(batch):
    return {served.prompt.prompt_id for served in batch.prompts}


ZERO, HALF, ONE = 0, 1, 2


def by_kind(batch, *kinds):
    """All attempts of a batch: prompt pi passes never, every other time or always."""
    return {
        p.slot: [
            float(kinds[int(p.prompt.prompt_id[1:]) % len(kinds)] > i % 2)
            for i in range(p.attempt_count)
        ]
        for p in batch.prompts
    }


def reasons(batch):
    return Counter(batch_pb2.Reason.Name(p.reason).removeprefix("REASON_") for p in batch.prompts)


def test_a_batch_says_what_is_served_and_why(open_run):
    run = open_run(20)
    batch = run.next("batch", count=6, step=3)
    assert (batch.batch_id, batch.timeline, batch.policy_step) == ("batch", 0, 3)
    assert batch.shortfall == ""
    assert [p.slot for p in batch.prompts] == list(range(6))
    assert len(ids(batch)) == 6
    for served in batch.prompts:
        assert served.attempt_count == 8
        assert 0 < served.pass_rate_low < served.pass_rate < served.pass_rate_high < 1
        assert served.reason == batch_pb2.REASON_EXPLORE
        number = int(served.prompt.prompt_id[1:])
        assert served.prompt.text == f"What is {number} + {number}?"


def test_the_lease_ends_when_the_ttl_says(open_run, raw):
    run = open_run(5, lease_ttl=Duration(seconds=120))
    before = raw.time()[0]
    batch = run.next()
    assert before + 120 <= batch.lease_expire_time.seconds <= raw.time()[0] + 120


def test_the_same_request_gets_the_same_bytes(open_run):
    run = open_run(20)
    request = run.next_request("batch", count=5)
    first = run.stubs.trainer.NextBatch(request).SerializeToString()
    assert run.stubs.trainer.NextBatch(request).SerializeToString() == first
    batch = run.next("batch", count=5)
    run.report(batch, {0: [1.0] * 8, 1: [1.0], 2: [0.0] * 8})
    run.play(1)
    run.add([prompt_pb2.Prompt(prompt_id="new", domain="new")])
    run.release(batch)
    assert run.stubs.trainer.NextBatch(request).SerializeToString() == first


def test_a_repeat_is_answered_after_its_window_has_closed(open_run):
    run = open_run(40, window_steps=1)
    batch = run.next("batch", count=2, step=0)
    report = run.report_request(batch, {0: [1.0] * 8})
    receipt = run.stubs.trainer.ReportOutcomes(report).receipt
    for step in range(1, 12):
        run.play(step, count=2)
    before = run.seen()
    assert run.next("batch", count=2, step=0) == batch
    repeated = run.stubs.trainer.ReportOutcomes(report).receipt
    assert (repeated.attempt_count, repeated.duplicate) == (receipt.attempt_count, True)
    assert run.seen() == before


def test_ranks_that_ask_at_once_get_one_batch(open_run):
    run = open_run(50)
    request = run.next_request("batch", count=8)
    with ThreadPoolExecutor(8) as ranks:
        answers = list(ranks.map(run.stubs.trainer.NextBatch, [request] * 16))
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert run.stats().leased_prompt_count == 8


def test_batches_that_are_out_at_once_share_no_prompt(open_run):
    run = open_run(100)
    with ThreadPoolExecutor(8) as ranks:
        batches = list(ranks.map(lambda i: run.next(f"b{i}", count=9), range(11)))
    assert [len(batch.prompts) for batch in batches] == [9] * 11
    assert len(set().union(*map(ids, batches))) == 99
    assert run.stats().leased_prompt_count == 99


def test_a_prompt_whose_attempts_are_all_in_goes_back_to_the_pool(open_run):
    run = open_run(2, selection={"group_size": 2})
    batch = run.next(count=2)
    run.report(batch, {0: [1.0, 0.0], 1: [1.0]})
    assert run.stats().leased_prompt_count == 1
    assert ids(run.next(count=2)) == {batch.prompts[0].prompt.prompt_id}
    run.report(batch, {1: [0.0]})
    assert ids(run.next(count=2)) == {batch.prompts[1].prompt.prompt_id}


def test_a_released_batch_goes_back_to_the_pool_once(open_run):
    run = open_run(3)
    batch = run.next(count=3)
    run.report(batch, {0: [1.0] * 8})
    assert run.release(batch) == 2
    assert run.release(batch) == 0
    again = run.next(count=3)
    assert len(again.prompts) == 3
    assert run.release(batch) == 0
    assert run.stats().leased_prompt_count == 3


def test_leases_run_out_and_their_late_reports_count_and_free_nobody_else(open_run, wait_until):
    run = open_run(3, lease_ttl=SHORT)
    late = run.next(count=3)
    assert list(run.next(count=3).prompts) == []
    run.update(lease_ttl=Duration(seconds=1000))
    wait_until(lambda: run.stats().leased_prompt_count == 0)
    assert len(run.next(count=3).prompts) == 3
    receipt = run.report(late, {slot: [1.0] * 4 + [0.0] * 4 for slot in range(3)})
    assert (receipt.attempt_count, receipt.completed_group_count) == (24, 3)
    assert run.release(late) == 0
    assert set(run.counts().values()) == {(8, 4)}
    assert run.stats().leased_prompt_count == 3
    assert list(run.next(count=3).prompts) == []


def test_probes_keep_their_leases_by_renewing(open_run, wait_until):
    run = open_run(4, lease_ttl=SHORT)
    probes = run.probes(count=2).batch
    other = run.next(count=2)
    request = pr.RenewProbesRequest(run_id=run.run_id, batch_id=probes.batch_id)

    def renewed():
        answer = run.stubs.probe.RenewProbes(request)
        assert answer.held_count == 2
        assert answer.lease_expire_time.seconds >= probes.lease_expire_time.seconds
        return run.stats().leased_prompt_count == 2

    wait_until(renewed)  # the other batch's leases ran out meanwhile
    assert ids(run.next(count=4)) == ids(other)
    assert run.release(probes) == 2
    assert run.stubs.probe.RenewProbes(request).held_count == 0


def test_a_lease_that_ran_out_is_not_renewed(open_run, wait_until):
    run = open_run(2, lease_ttl=SHORT)
    probes = run.probes(count=2).batch
    wait_until(lambda: run.stats().leased_prompt_count == 0)
    request = pr.RenewProbesRequest(run_id=run.run_id, batch_id=probes.batch_id)
    assert run.stubs.probe.RenewProbes(request).held_count == 0
    assert len(run.next(count=2).prompts) == 2
    assert run.stubs.probe.RenewProbes(request).held_count == 0


def test_a_pool_that_runs_dry_gives_fewer_prompts_and_says_why(open_run):
    run = open_run(10)
    run.next(count=7)
    rest = run.next(count=5)
    assert (len(rest.prompts), rest.shortfall) == (
        3, "3 of 5: 7 prompts are leased, the rest of the pool is empty")  # fmt: skip
    none = run.next(count=5)
    assert (len(none.prompts), none.shortfall) == (
        0, "0 of 5: 10 prompts are leased, the rest of the pool is empty")  # fmt: skip
    probes = run.probes(count=5).batch
    assert (list(probes.prompts), probes.shortfall) == ([], none.shortfall)


@pytest.mark.parametrize("strategy", ["edge", "thompson", "uniform"])
def test_an_empty_pool_gives_an_empty_batch_and_says_why(open_run, strategy):
    run = open_run(0, selection={"strategy": strategy})
    batch = run.next("batch", count=3)
    assert (list(batch.prompts), batch.shortfall) == ([], "0 of 3: the pool holds no more prompts")
    assert run.next("batch", count=3) == batch
    assert run.release(batch) == 0
    assert list(run.probes(count=3).batch.prompts) == []
    stats = run.stats()
    assert (stats.prompt_count, sum(stats.pass_rate_histogram)) == (0, 0)
    assert list(run.list().prompts) == []


def test_the_largest_batch_is_served_and_reported_whole(open_run):
    run = open_run(4100, selection={"group_size": 16})
    batch = run.next(count=4096)
    assert len(ids(batch)) == 4096
    receipt = run.report(batch, {slot: [1.0, 0.0] * 8 for slot in range(4096)})
    assert (receipt.attempt_count, receipt.mixed_group_count) == (65_536, 4096)
    assert run.stats().leased_prompt_count == 0


@pytest.mark.parametrize("strategy", ["edge", "thompson", "uniform"])
def test_every_strategy_serves_and_learns(open_run, strategy):
    run = open_run(60, selection={"strategy": strategy, "reach_share": 0, "review_share": 0})
    for step in range(12):
        batch = run.next(count=10, step=step)
        assert len(ids(batch)) == 10
        run.report(batch, by_kind(batch, ZERO, HALF, ONE))
        if strategy == "uniform":
            assert set(reasons(batch)) == {"UNIFORM"}
    stats = run.stats()
    assert (stats.attempt_count, stats.group_count) == (960, 120)
    if strategy == "uniform":  # every prompt once before any twice
        assert set(run.counts().values()) == {(16, 16), (16, 8), (16, 0)}
    else:
        late = run.next(count=10, step=12)
        assert sum(int(p.prompt.prompt_id[1:]) % 3 == 1 for p in late.prompts) >= 5


def test_different_seeds_and_requests_give_different_batches(open_run):
    one, other = open_run(200, seed=1), open_run(200, seed=2)
    same = open_run(200, seed=1)
    first = one.next("a", count=20)
    assert ids(same.next("a", count=20)) == ids(first)
    assert ids(other.next("a", count=20)) != ids(first)
    one.release(first)
    assert ids(one.next("b", count=20)) != ids(first)


def test_domain_shares_are_respected(open_run):
    run = open_run(120, domains=3, selection={"domain_shares": {"d0": 0.5, "d2": 0.25}})
    for step in range(4):
        batch = run.play(step, count=20)
        domains = Counter(p.prompt.domain for p in batch.prompts)
        assert domains == {"d0": 10, "d1": 5, "d2": 5}


def test_a_share_of_a_domain_that_runs_dry_goes_to_the_others(open_run):
    run = open_run(0, selection={"domain_shares": {"few": 0.5}})
    run.add(prompt_pb2.Prompt(prompt_id=f"f{i}", domain="few") for i in range(2))
    run.add(prompt_pb2.Prompt(prompt_id=f"m{i}", domain="many") for i in range(20))
    domains = Counter(p.prompt.domain for p in run.next(count=10).prompts)
    assert domains == {"few": 2, "many": 8}


def test_a_share_of_a_domain_that_is_not_there_is_no_obstacle(open_run):
    run = open_run(10, selection={"domain_shares": {"nowhere": 1.0}})
    assert len(run.next(count=5).prompts) == 5


def test_review_and_reach_have_their_places(open_run):
    selection = {"review_share": 0.25, "reach_share": 0.25, "reach_attempt_factor": 3}
    run = open_run(40, domains=1, selection={**selection, "group_size": 16, "rest_steps": 0})
    for _ in range(3):
        batch = run.next(count=40)
        run.report(batch, by_kind(batch, ZERO, HALF, ONE, HALF))
    batch = run.next(count=8)
    found = reasons(batch)
    assert (found["REVIEW"], found["REACH"]) == (2, 2)
    for served in batch.prompts:
        kind = int(served.prompt.prompt_id[1:]) % 4
        is_reach = served.reason == batch_pb2.REASON_REACH
        assert served.attempt_count == (48 if is_reach else 16)
        assert not is_reach or kind == 0
        assert served.reason != batch_pb2.REASON_REVIEW or kind == 2


def test_a_served_prompt_rests_and_a_probed_one_does_not(open_run):
    run = open_run(40, selection={"rest_steps": 3})
    served = ids(run.play(5, count=2, passes=4))
    probed = run.probes(count=38, step=5, attempt_count=8).batch
    run.report_probes(probed, {p.slot: [1.0] * 8 for p in probed.prompts})
    states = {state.prompt_id: state for state in run.list().prompts}
    assert {i for i, state in states.items() if state.HasField("last_served_step")} == served
    assert {states[prompt_id].last_served_step for prompt_id in served} == {5}
    # All others are mastered, so nothing but its rest keeps a prompt at the edge from a batch.
    for step in (6, 7):
        batch = run.next(count=2, step=step)
        assert len(ids(batch) - served) == 2
        run.release(batch)
    assert ids(run.next(count=2, step=8)) == served


def test_probes_are_leased_with_the_published_policy(open_run):
    run = open_run(10)
    assert not run.probes(count=1).HasField("policy")
    run.publish(4, "s3://weights/4")
    answer = run.probes("probes", count=2, step=4, attempt_count=3)
    assert (answer.policy.policy_step, answer.policy.uri) == (4, "s3://weights/4")
    assert {p.reason for p in answer.batch.prompts} == {batch_pb2.REASON_PROBE}
    assert {p.attempt_count for p in answer.batch.prompts} == {3}
    assert run.get().policy == answer.policy
    assert run.probes("probes", count=2, step=4, attempt_count=3) == answer
    run.publish(2, "s3://weights/2")  # older news changes nothing
    assert run.get().policy.policy_step == 4
    run.publish(4, "s3://elsewhere/4")
    assert run.get().policy.uri == "s3://elsewhere/4"


def test_probes_prefer_what_is_least_certain(open_run):
    run = open_run(30, domains=1, selection={"group_size": 32})
    known = run.next(count=20)
    run.report(known, {p.slot: [1.0] * 16 + [0.0] * 16 for p in known.prompts})
    assert not ids(run.probes(count=10).batch) & ids(known)


def test_probes_and_batches_share_no_prompt_and_both_count(open_run):
    run = open_run(12)
    batch, probes = run.next(count=6), run.probes(count=6, attempt_count=4).batch
    assert not ids(batch) & ids(probes)
    run.report(batch, {0: [1.0]})
    receipt = run.report_probes(probes, {0: [1.0, 0.0], 1: [0.0]})
    assert (receipt.attempt_count, receipt.pass_count) == (3, 1)
    assert run.stats().attempt_count == 4
    assert sum(attempts for attempts, _ in run.counts().values()) == 4


def test_unpublished_fields_of_a_policy_do_not_appear(open_run):
    run = open_run(1)
    run.publish(0, "/weights")
    assert run.get().policy == run_pb2.Policy(policy_step=0, uri="/weights")
