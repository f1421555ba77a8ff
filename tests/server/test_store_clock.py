"""The store's clock jumps: leases follow it, and counts do not depend on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration

from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import run_pb2
from tests.conftest import CONFIG, RunningServer
from tests.server.driving import RunDriver
from tests.server.faketime import ClockedValkey

LEASE_S = 100
HOUR_S = 3600
FORGOTTEN_S = 2 * LEASE_S + HOUR_S + 60
"""A batch is kept for no longer."""


@pytest.fixture(scope="module")
def clock():
    valkey = ClockedValkey()
    valkey.start()
    yield valkey
    valkey.close()


@pytest.fixture(scope="module")
def servers(loop_thread, clock):
    started = [RunningServer(loop_thread, replace(CONFIG, redis=clock.url)) for _ in range(2)]
    yield [server.stubs for server in started]
    for server in started:
        server.stop()


@pytest.fixture
def pair(request, servers):
    """A run with ten prompts through two servers."""
    one, other = servers
    selection = run_pb2.SelectionConfig(group_size=2, reach_share=0, reach_attempt_factor=1)
    config = run_pb2.RunConfig(selection=selection, lease_ttl=Duration(seconds=LEASE_S))
    one.create_run(request.node.name[:64], config)
    one.add_prompts(request.node.name[:64], 10)
    driver = RunDriver(one, request.node.name[:64])
    return driver, driver.through(other)


def ids(batch):
    return {p.prompt.prompt_id for p in batch.prompts}


def see_the_time(*runs):
    """Servers read the store's clock together with its events, once a second by themselves."""
    for run in runs:
        run.get()


def renewal(run, batch):
    request = pr.RenewProbesRequest(
        run_id=run.run_id, batch_id=batch.batch_id, timeline=batch.timeline
    )
    return run.stubs.probe.RenewProbes(request)


def test_leases_run_out_when_the_clock_jumps_forward(pair, clock):
    one, other = pair
    first = one.next(count=10)
    assert not ids(other.next(count=4))
    clock.move(LEASE_S)
    see_the_time(one, other)
    second = other.next(count=10)
    assert ids(second) == ids(first)
    assert one.stats().leased_prompt_count == 10
    assert renewal(one, first).held_count == 0
    assert one.report(first, {0: [1.0, 0.0]}).completed_group_count == 1
    assert other.report(second, {0: [1.0]}).attempt_count == 1
    assert one.stats().attempt_count == 3
    assert one.stats().leased_prompt_count == other.stats().leased_prompt_count == 10


def test_leases_hold_for_longer_when_the_clock_jumps_back(pair, clock):
    one, other = pair
    first = one.next(count=6)
    clock.move(-HOUR_S)
    see_the_time(one, other)
    second = other.next(count=10)
    assert len(ids(second) | ids(first)) == len(ids(second)) + len(ids(first)) == 10
    assert one.stats().leased_prompt_count == 10
    clock.move(HOUR_S)
    see_the_time(one, other)
    assert ids(one.next(count=10)) == ids(second)
    clock.move(LEASE_S)
    see_the_time(one, other)
    assert len(one.next(count=10).prompts) == 10


def test_counts_are_exact_whatever_the_clock_does(pair, clock):
    one, other = pair
    for number, jump in enumerate((HOUR_S, -2 * HOUR_S, LEASE_S, -1, 24 * HOUR_S, -24 * HOUR_S)):
        batch = one.next(count=3, step=number)
        request = one.report_request(batch, {0: [1.0, 0.0], 1: [1.0]})
        assert not one.stubs.trainer.ReportOutcomes(request).receipt.duplicate
        if abs(jump) < HOUR_S:
            clock.move(jump)
            assert other.stubs.trainer.ReportOutcomes(request).receipt.duplicate
        else:
            assert other.stubs.trainer.ReportOutcomes(request).receipt.duplicate
            clock.move(jump)
        one.release(batch) if jump < HOUR_S else None
        see_the_time(one, other)
    assert one.stats().attempt_count == other.stats().attempt_count == 18
    assert one.stats().group_count == other.stats().group_count == 6
    assert one.counts() == other.counts()


def test_events_stay_in_order_when_the_clock_jumps_back(pair, clock):
    one, other = pair
    for number in range(4):
        one.play(number, count=2, passes=1)
        clock.move(-LEASE_S)
        assert other.stats() == one.stats()
    assert other.stats().group_count == 8


def test_a_lease_that_ran_out_is_not_renewed_by_a_clock_that_went_back(pair, clock):
    one, other = pair
    first = one.probes(count=10, attempt_count=2).batch
    clock.move(LEASE_S + 10)
    see_the_time(one, other)
    second = other.next(count=10)
    assert ids(second) == ids(first)
    clock.move(-50)
    assert renewal(one, first).held_count == 0
    assert renewal(other, second).held_count == 10


def test_a_batch_is_not_made_by_the_time_of_before_the_clock_went_back(pair, clock):
    one, _ = pair
    one.next(count=10)
    clock.move(LEASE_S + 10)
    see_the_time(one)
    clock.move(-50)
    assert not one.next(count=10).prompts


def test_servers_agree_after_the_clock_went_forward_and_back(pair, clock):
    one, other = pair
    one.next(count=5)
    clock.move(LEASE_S + 10)
    see_the_time(one, other)
    one.next(count=2)
    clock.move(-50)
    assert one.stats() == other.stats()


def test_a_name_that_was_forgotten_is_a_new_batch_for_every_server(pair, clock):
    one, other = pair
    first = one.next("again", count=3)
    one.report(first, {0: [1.0]})
    other.report(first, {1: [1.0]})
    before = other.counts()
    clock.move(FORGOTTEN_S)
    see_the_time(one, other)
    held = one.next(count=6)
    second = one.next("again", count=3)
    assert ids(second) != ids(first)
    assert not ids(second) & ids(held)
    expected = dict(before)
    for server, slot in ((other, 0), (one, 1)):
        server.report(second, {slot: [0.0]})
        prompt_id = second.prompts[slot].prompt.prompt_id
        attempts, passes = expected.get(prompt_id, (0, 0))
        expected[prompt_id] = (attempts + 1, passes)
    assert one.counts() == other.counts() == expected
