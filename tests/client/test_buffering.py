"""Reports made while the service is away."""

from __future__ import annotations

import asyncio
import pickle
import time

import grpc
import pytest

from curriculum_client import (
    ConflictError,
    InvalidRequestError,
    Receipt,
    StoreUnavailableError,
    TrainerClient,
    UnauthenticatedError,
)

INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "slots[0]=0: was reported")


@pytest.fixture
async def client(connect):
    """A client that does not wait for a service that is away."""
    return connect(retry_s=0)


async def test_reports_are_kept_and_sent_in_order_before_the_next_call(
    client, server, service, client_log
):
    async with client:
        batch = await client.next_batch(3, policy_step=0)
        server.stop()
        for prompt_id in ("p0", "p1", "p2"):
            assert await client.report(batch, {prompt_id: [1.0]}, policy_step=0) is None
        assert client.buffered_reports == 3
        assert "report buffered run=math batch=default-0 buffered=3" in client_log.text
        server.start()
        await wait_until_back(client)
        await client.next_batch(3, policy_step=1)
        assert client.buffered_reports == 0
    methods = [method for method, _ in service.calls]
    assert methods == ["NextBatch"] + ["ReportOutcomes"] * 3 + ["NextBatch"]
    assert [request.outcomes.slots[0] for request in service.requests("ReportOutcomes")] == [
        0,
        1,
        2,
    ]


async def wait_until_back(client):
    """Waits for the reconnection, which an impatient client does not."""
    deadline_s = time.monotonic() + 10
    while True:
        try:
            return await client.flush()
        except StoreUnavailableError:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.02)


async def test_flush_sends_what_is_kept_and_says_what_it_changed(client, service, away):
    service.failures["ReportOutcomes"].extend([away] * 2)
    async with client:
        batch = await client.next_batch(2, policy_step=0)
        await client.report(batch, {"p0": [1.0, 0.0]}, policy_step=0)
        await client.report(batch, {"p1": [1.0, 1.0]}, policy_step=0)
        assert await client.flush() == Receipt(attempt_count=4, pass_count=3)
        assert await client.flush() == Receipt()


async def test_the_next_report_takes_the_kept_ones_along(client, service, away):
    service.failures["ReportOutcomes"].append(away)
    async with client:
        batch = await client.next_batch(2, policy_step=0)
        assert await client.report(batch, {"p0": [1.0]}, policy_step=0) is None
        assert await client.report(batch, {"p0": [1.0]}, policy_step=0) == Receipt(1, 1)
        assert client.buffered_reports == 0
    assert service.attempts == {("default-0", 0): 2}


async def test_a_report_applied_before_it_was_kept_counts_once(client, service, lost_answer):
    service.failures["ReportOutcomes"].append(lost_answer)
    async with client:
        batch = await client.next_batch(2, policy_step=0)
        assert await client.report(batch, {"p0": [1.0]}, policy_step=0) is None
        assert await client.flush() == Receipt(1, 1, duplicate=True)
    assert service.attempts == {("default-0", 0): 1}


async def test_the_bound_is_named_when_it_is_reached(connect, service, away):
    service.failures["ReportOutcomes"].extend([away] * 3)
    client = connect(retry_s=0, max_buffered_reports=2)
    async with client:
        batch = await client.next_batch(3, policy_step=0)
        for prompt_id in ("p0", "p1"):
            await client.report(batch, {prompt_id: [1.0]}, policy_step=0)
        with pytest.raises(StoreUnavailableError, match="max_buffered_reports=2: reached"):
            await client.report(batch, {"p2": [1.0]}, policy_step=0)
        assert client.buffered_reports == 2
        await client.report(batch, {"p2": [1.0]}, policy_step=0)
    assert service.attempts == {("default-0", slot): 1 for slot in range(3)}


async def test_a_report_refused_late_is_raised_by_the_call_that_sent_it(client, service, away):
    async with client:
        batch = await client.next_batch(3, policy_step=0)
        service.failures["ReportOutcomes"].extend([away, away, away, INVALID])
        for prompt_id in ("p0", "p1", "p2"):
            await client.report(batch, {prompt_id: [1.0]}, policy_step=0)
        with pytest.raises(InvalidRequestError, match=r"batch_id='default-0'.*slots\[0\]=0"):
            await client.next_batch(3, policy_step=1)
        assert client.buffered_reports == 0
        assert (await client.next_batch(3, policy_step=1)).batch_id == "default-1"
    assert service.attempts == {("default-0", 1): 1, ("default-0", 2): 1}


async def test_reports_of_an_older_timeline_do_not_vanish(client, service, away):
    async with client:
        batch = await client.next_batch(3, policy_step=0)
        service.failures["ReportOutcomes"].extend([away] * 2)
        for prompt_id in ("p0", "p1"):
            await client.report(batch, {prompt_id: [1.0]}, policy_step=0)
        service.timeline += 1
        with pytest.raises(ConflictError, match=r"refused \(2 in all\)") as caught:
            await client.flush()
        assert len(caught.value.__notes__) == 1


async def test_a_rejected_token_does_not_cost_the_reports(client, service, away):
    async with client:
        batch = await client.next_batch(3, policy_step=0)
        unauthenticated = (grpc.StatusCode.UNAUTHENTICATED, "token: has expired")
        service.failures["ReportOutcomes"].extend([away, unauthenticated])
        await client.report(batch, {"p0": [1.0]}, policy_step=0)
        with pytest.raises(UnauthenticatedError, match="has expired"):
            await client.flush()
        assert client.buffered_reports == 1
    assert service.attempts == {("default-0", 0): 1}


async def test_closing_sends_what_is_kept_and_raises_when_it_cannot(client, service, away):
    batch = await client.next_batch(2, policy_step=0)
    service.failures["ReportOutcomes"].extend([away] * 2)
    await client.report(batch, {"p0": [1.0]}, policy_step=0)
    with pytest.raises(StoreUnavailableError) as caught:
        await client.close()
    assert "unsent_reports=1" in caught.value.__notes__
    await client.close()
    assert service.attempts == {("default-0", 0): 1}


async def leave_with_an_exception(client):
    async with client:
        batch = await client.next_batch(2, policy_step=0)
        await client.report(batch, {"p0": [1.0]}, policy_step=0)
        raise ZeroDivisionError


async def test_closing_does_not_hide_the_exception_that_ended_the_block(client, service, away):
    service.failures["ReportOutcomes"].extend([away] * 2)
    with pytest.raises(ZeroDivisionError) as caught:
        await leave_with_an_exception(client)
    assert caught.value.__notes__[0].startswith("curriculum_client: unsent_reports=1: store")


async def test_kept_reports_travel_in_a_pickle_and_count_once(server, service, away):
    client = TrainerClient(server.target, "math", retry_s=0)
    batch = client.next_batch(2, policy_step=0)
    service.failures["ReportOutcomes"].append(away)
    client.report(batch, {"p0": [1.0]}, policy_step=0)
    with pickle.loads(pickle.dumps(client)) as copy:
        assert copy.flush() == Receipt(1, 1)
    client.close()
    assert service.attempts == {("default-0", 0): 1}


async def test_threads_that_flush_at_once_send_everything_and_count_it_once(client, service, away):
    async with client:
        batch = await client.next_batch(40, policy_step=0)
        service.failures["ReportOutcomes"].extend([away] * 40)
        for slot in range(40):
            await client.report(batch, {slot: [1.0]}, policy_step=0)
        receipts = await asyncio.gather(*(client.flush() for _ in range(4)))
        assert client.buffered_reports == 0
    assert service.attempts == {("default-0", slot): 1 for slot in range(40)}
    assert sum(receipt.attempt_count for receipt in receipts) == 40


async def test_a_service_known_to_be_away_is_not_waited_for_with_every_report(
    connect, service, away
):
    service.failures["ReportOutcomes"].extend([away] * 100)
    async with connect(retry_s=0.2) as client:
        batch = await client.next_batch(3, policy_step=0)
        await client.report(batch, {"p0": [1.0]}, policy_step=0)
        tried = len(service.requests("ReportOutcomes"))
        await client.report(batch, {"p1": [1.0]}, policy_step=0)
        assert len(service.requests("ReportOutcomes")) == tried + 1 > 2
        service.failures.clear()
