"""Which failures are repeated, and what the others become."""

from __future__ import annotations

import asyncio
import pickle

import grpc
import pytest

import curriculum_client
from curriculum_api import errors
from curriculum_client import CurriculumError, DeadlineError, OverloadedError, StoreUnavailableError

REPEATED = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED")
ERRORS = {name: error for error, name in errors.STATUS_NAMES.items()}


@pytest.mark.parametrize("status", REPEATED)
async def test_the_same_call_is_repeated_while_the_service_is_away(connect, service, status):
    service.failures["NextBatch"].extend([(grpc.StatusCode[status], "later")] * 2)
    async with connect() as client:
        assert len(await client.next_batch(2, policy_step=0)) == 2
    assert service.request_ids("NextBatch") == ["default-0"] * 3


@pytest.mark.parametrize("status", [code.name for code in grpc.StatusCode if code.name != "OK"])
async def test_every_status_becomes_its_error_with_its_text(connect, service, status):
    failure = (grpc.StatusCode[status], "prompt_count=7: is odd")
    service.failures["NextBatch"].append(failure)
    async with connect(retry_s=0) as client:
        with pytest.raises(CurriculumError) as caught:
            await client.next_batch(7, policy_step=0)
    outside = StoreUnavailableError if status == "CANCELLED" else CurriculumError
    expected = ERRORS.get(status, outside)
    assert type(caught.value) is expected
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    unknown = f"{status}: prompt_count=7: is odd"
    assert str(caught.value) == ("prompt_count=7: is odd" if status in ERRORS else unknown)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "ABORTED", "UNAUTHENTICATED", "INTERNAL"])
async def test_a_judgement_is_not_repeated(connect, service, status):
    service.failures["NextBatch"].append((grpc.StatusCode[status], "no"))
    async with connect() as client:
        with pytest.raises(CurriculumError):
            await client.next_batch(2, policy_step=0)
    assert len(service.calls) == 1


async def test_repeating_ends_after_retry_s_and_says_how_long_it_tried(connect, service, away):
    service.failures["PublishPolicy"].extend([away] * 50)
    async with connect(retry_s=0.3) as client:
        with pytest.raises(StoreUnavailableError, match="store: connection refused") as caught:
            await client.publish_policy(1, "uri")
    assert 2 <= len(service.calls) <= 8
    assert caught.value.__notes__[0].startswith(f"PublishPolicy: attempts={len(service.calls)} ")


async def test_a_service_that_hangs_is_left_after_timeout_s(connect, service):
    service.hanging.set()
    async with connect(timeout_s=0.2, retry_s=0) as client:
        with pytest.raises(DeadlineError):
            await client.next_batch(2, policy_step=0)


async def test_an_overloaded_service_is_asked_again_and_then_the_error_names_it(connect, service):
    failure = (grpc.StatusCode.RESOURCE_EXHAUSTED, "calls: 100 are in flight")
    service.failures["Checkpoint"].extend([failure] * 50)
    async with connect(retry_s=0.2) as client:
        with pytest.raises(OverloadedError, match="100 are in flight"):
            await client.checkpoint("step-1", 1)
    assert len(service.calls) > 1


async def test_a_service_that_restarts_is_found_again(connect, server):
    async with connect() as client:
        await client.next_batch(2, policy_step=0)
        server.stop()
        call = asyncio.ensure_future(client.next_batch(2, policy_step=1))
        done, _ = await asyncio.wait([call], timeout=0.3)
        assert not done
        server.start()
        assert (await call).batch_id == "default-1"


async def test_waiting_for_a_service_that_stays_away_is_said_once(connect, service, client_log):
    service.failures["NextBatch"].extend([(grpc.StatusCode.UNAVAILABLE, "later")] * 4)
    async with connect() as client:
        assert len(await client.next_batch(2, policy_step=0)) == 2
    said = [record.getMessage() for record in client_log.records]
    assert said == ["service away method=NextBatch retry_s=5 because=later"]


async def test_a_cancelled_call_gives_its_sequence_number_back(server, service):
    service.hanging.set()
    client = curriculum_client.AsyncTrainerClient(server.target, "math")
    async with client:
        call = asyncio.ensure_future(client.next_batch(2, policy_step=0))
        done, _ = await asyncio.wait([call], timeout=0.1)
        assert not done
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        service.hanging.clear()
        assert (await client.next_batch(2, policy_step=0)).batch_id == "default-0"


def test_every_error_of_the_contract_can_be_imported_from_the_client():
    names = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert names <= set(curriculum_client.__all__)
    for name in names:
        assert getattr(curriculum_client, name) is getattr(errors, name)


def test_every_error_of_the_contract_has_a_status_of_its_own():
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert set(errors.STATUS_NAMES) == kinds - {CurriculumError}
    assert len(ERRORS) == len(errors.STATUS_NAMES)
