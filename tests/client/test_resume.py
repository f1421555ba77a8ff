"""A trainer that stops and goes on."""

from __future__ import annotations

import copy
import json
import pickle

import grpc
import pytest

from curriculum_client import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    TrainerClient,
)


async def test_a_resumed_client_goes_on_with_the_sequence(connect, service):
    async with connect() as client:
        for step in range(3):
            await client.next_batch(2, policy_step=step)
        state = json.loads(json.dumps(client.state_dict()))
    async with connect() as client:
        client.load_state_dict(state)
        assert client.timeline == 0
        assert (await client.next_batch(2, policy_step=3)).batch_id == "default-3"


async def test_a_number_whose_batch_never_came_is_asked_for_after_resuming(connect, service, away):
    async with connect(retry_s=0) as client:
        service.failures["NextBatch"].append(away)
        with pytest.raises(ConnectionError):
            await client.next_batch(2, policy_step=0)
        state = client.state_dict()
    async with connect() as client:
        client.load_state_dict(state)
        assert (await client.next_batch(2, policy_step=0)).batch_id == "default-0"
        assert (await client.next_batch(2, policy_step=0)).batch_id == "default-1"


async def test_the_budget_of_a_batch_that_never_came_is_remembered(connect, service, away):
    async with connect(retry_s=0) as client:
        service.failures["NextBatch"].append(away)
        with pytest.raises(ConnectionError):
            await client.next_batch(2, policy_step=0, rollout_budget=9)
        state = json.loads(json.dumps(client.state_dict()))
    async with connect() as client:
        client.load_state_dict(state)
        assert (await client.next_batch(2, policy_step=0)).batch_id == "default-1"
        again = await client.next_batch(2, policy_step=0, rollout_budget=9)
        assert again.batch_id == "default-0"


async def test_a_batch_half_reported_can_be_finished_after_resuming(connect, service):
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        await client.report(batch, {"p0": [1.0]}, policy_step=0)
        state = json.loads(json.dumps(client.state_dict()))
    async with connect() as client:
        client.load_state_dict(state)
        await client.report(batch, {"p0": [1.0]}, policy_step=0)
    assert service.attempts == {("default-0", 0): 2}


@pytest.mark.parametrize("load_first", [True, False])
async def test_resuming_from_a_checkpoint_adopts_the_new_timeline(connect, service, load_first):
    async with connect() as client:
        await client.next_batch(2, policy_step=0)
        await client.checkpoint("step-1", 1)
        state = client.state_dict()
        lost = await client.next_batch(2, policy_step=1)
    async with connect() as client:
        if load_first:
            client.load_state_dict(state)
        assert await client.rollback("step-1") == 1
        if not load_first:
            client.load_state_dict(state)
        assert client.timeline == 1
        again = await client.next_batch(2, policy_step=1)
        assert (again.batch_id, again.timeline) == (lost.batch_id, 1)
        with pytest.raises(ConflictError, match="timeline=0: is over"):
            await client.report(lost, {0: [1.0]}, policy_step=1)


async def test_going_back_twice_is_two_rollbacks_unless_they_have_one_name(connect, service):
    async with connect() as client:
        await client.checkpoint("step-1", 1)
        await client.rollback("step-1")
        await client.rollback("step-1")
        await client.rollback("step-1", request_id="resume-3")
    ids = service.request_ids("Rollback")
    assert len(set(ids)) == 3
    assert ids[2] == "resume-3"


async def test_rolling_back_to_nowhere_is_not_found(connect):
    async with connect() as client:
        with pytest.raises(NotFoundError, match="checkpoint_name='x': is not kept"):
            await client.rollback("x")
        assert client.timeline is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"consumer": "other"}, "state['consumer']='other': must be 'default'"),
        ({"run_id": "code"}, "state['run_id']='code': must be 'math'"),
        ({"version": 2}, "state['version']=2: must be 1"),
        ({"sequence": None}, "state: not a client's state: TypeError"),
        ({"sequence": []}, "state: not a client's state: ValueError"),
        ({"sequence": [3, 1]}, "state: not a client's state: TypeError"),
        ({"sequence": ["3"]}, "state: not a client's state: TypeError"),
        ({"parts": 3}, "state: not a client's state: AttributeError"),
        ({"timeline": "1"}, "state: not a client's state: TypeError"),
    ],
)
def test_another_clients_state_is_refused(server, changes, message):
    client = TrainerClient(server.target, "math")
    with pytest.raises(InvalidRequestError) as caught:
        client.load_state_dict({**client.state_dict(), **changes})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("duplicate", [lambda c: pickle.loads(pickle.dumps(c)), copy.deepcopy])
def test_a_copied_client_goes_on_from_the_same_place(server, service, duplicate):
    with TrainerClient(server.target, "math", consumer="c") as client:
        client.next_batch(2, policy_step=0)
        with duplicate(client) as other:
            assert other.timeline == 0
            assert other.next_batch(2, policy_step=1) == client.next_batch(2, policy_step=1)


def test_equal_reports_of_copies_are_different_attempts(server, service):
    with TrainerClient(server.target, "math") as client:
        batch = client.next_batch(2, policy_step=0)
        client.report(batch, {"p0": [1.0]}, policy_step=0)
        for _ in range(2):
            with pickle.loads(pickle.dumps(client)) as other:
                other.report(batch, {"p0": [1.0]}, policy_step=0)
    assert service.attempts == {("default-0", 0): 3}


async def test_a_training_that_starts_anew_on_a_used_run_is_told_what_to_do(connect, service):
    taken = (grpc.StatusCode.ALREADY_EXISTS, "request_id='default-0': was used with other content")
    service.failures["NextBatch"] += [taken, taken]
    async with connect() as client:
        with pytest.raises(AlreadyExistsError) as caught:
            await client.next_batch(3, policy_step=0)
        [note] = caught.value.__notes__
        assert "takes another consumer" in note
        with pytest.raises(AlreadyExistsError) as caught:
            await client.next_batch(3, policy_step=0, request_id="default-0")
        assert not hasattr(caught.value, "__notes__")
