"""What a trainer receives, and by which names it asks."""

from __future__ import annotations

import asyncio
import pickle
from datetime import UTC, datetime

import pytest

from curriculum_api.v1 import batch_pb2
from curriculum_client import Batch, CorruptStateError, InvalidRequestError
from curriculum_client._batch import decode_batch


async def test_a_batch_is_a_sequence_of_prompts_with_what_was_believed(connect):
    async with connect() as client:
        batch = await client.next_batch(prompt_count=3, policy_step=7)
    assert (len(batch), batch.policy_step, batch.timeline, batch.batch_id) == (3, 7, 0, "default-0")
    assert batch.lease_expire_time == datetime.fromtimestamp(1_700_000_000, UTC)
    prompt = batch[1]
    assert list(batch)[1] is batch[:2][1] is prompt
    assert (prompt.prompt_id, prompt.domain, prompt.text) == ("p1", "math", "1 + 1 = ?")
    assert (prompt.payload, prompt.tags, prompt.features) == (
        {"answer": 2},
        ("sum",),
        {"digits": 1},
    )
    assert (prompt.slot, prompt.attempt_count, prompt.reason) == (1, 4, "edge")
    assert (prompt.pass_rate, prompt.pass_rate_interval) == (0.5, (0.25, 0.75))


async def test_batches_and_prompts_pickle_and_compare(connect):
    async with connect() as client:
        batch = await client.next_batch(3, policy_step=0)
    assert batch[0].payload == {"answer": 1}
    copy = pickle.loads(pickle.dumps(batch))
    assert isinstance(copy, Batch)
    assert copy == batch
    assert len({copy, batch, copy[0], batch[0]}) == 2


async def test_a_pool_that_runs_dry_gives_fewer_prompts_and_the_reason(connect):
    async with connect() as client:
        batch = await client.next_batch(150, policy_step=0)
    assert len(batch) == 100
    assert batch.shortfall == "the pool ran dry"


async def test_request_ids_follow_consumer_and_sequence(connect, service):
    async with connect(consumer="rank-a") as client:
        batches = [await client.next_batch(2, policy_step=step) for step in range(3)]
    assert [batch.batch_id for batch in batches] == ["rank-a-0", "rank-a-1", "rank-a-2"]


async def test_an_explicit_request_id_leaves_the_sequence_alone(connect, service):
    async with connect() as one, connect() as other:
        batch = await one.next_batch(2, policy_step=0, request_id="step-0")
        assert await other.next_batch(2, policy_step=0, request_id="step-0") == batch
        await one.next_batch(2, policy_step=0)
    assert service.request_ids("NextBatch") == ["step-0", "step-0", "default-0"]


async def test_a_sequence_number_is_used_again_until_its_batch_was_received(connect, service, away):
    service.failures["NextBatch"].extend([away])
    async with connect(retry_s=0) as client:
        with pytest.raises(ConnectionError):
            await client.next_batch(2, policy_step=0)
        await client.next_batch(2, policy_step=0)
        await client.next_batch(2, policy_step=0)
    assert service.request_ids("NextBatch") == ["default-0", "default-0", "default-1"]


async def test_a_number_that_may_have_been_leased_is_not_used_for_another_request(
    connect, service, lost_answer
):
    service.failures["NextBatch"].append(lost_answer)
    async with connect(retry_s=0) as client:
        with pytest.raises(ConnectionError):
            await client.next_batch(2, policy_step=0)
        assert (await client.next_batch(2, policy_step=1)).batch_id == "default-1"
        assert (await client.next_batch(2, policy_step=0)).batch_id == "default-0"
        assert (await client.next_batch(2, policy_step=0)).batch_id == "default-2"


async def test_a_budget_is_asked_for_only_where_it_is_given(connect, service):
    async with connect() as client:
        batch = await client.next_batch(3, policy_step=0, rollout_budget=14)
        assert [prompt.attempt_count for prompt in batch] == [4, 5, 5]
        await client.next_batch(3, policy_step=1)
        await client.next_batch(3, policy_step=2, request_id="own", rollout_budget=98_301)
    first, second, third = service.requests("NextBatch")
    assert (first.rollout_budget, third.rollout_budget) == (14, 98_301)
    assert not second.HasField("rollout_budget")


async def test_a_number_that_may_have_been_leased_is_not_used_for_another_budget(
    connect, service, lost_answer
):
    service.failures["NextBatch"] += [lost_answer, lost_answer]
    async with connect(retry_s=0) as client:
        for fields in ({"rollout_budget": 9}, {}):
            with pytest.raises(ConnectionError):
                await client.next_batch(2, policy_step=0, **fields)
        names = [
            (await client.next_batch(2, policy_step=0, **fields)).batch_id
            for fields in ({"rollout_budget": 8}, {}, {"rollout_budget": 9}, {"rollout_budget": 9})
        ]
    assert names == ["default-2", "default-1", "default-0", "default-3"]


async def test_uneven_groups_are_reported_whole(connect, service):
    async with connect() as client:
        batch = await client.next_batch(3, policy_step=0, rollout_budget=14)
        rewards = [[1.0] * prompt.attempt_count for prompt in batch]
        receipt = await client.report(batch, rewards, policy_step=0)
    assert receipt.attempt_count == 14
    assert [service.attempts["default-0", slot] for slot in range(3)] == [4, 5, 5]


async def test_simultaneous_calls_get_different_batches(connect):
    async with connect() as client:
        calls = [client.next_batch(2, policy_step=0) for _ in range(16)]
        batches = await asyncio.gather(*calls)
    assert {batch.batch_id for batch in batches} == {f"default-{n}" for n in range(16)}


async def test_the_timeline_is_named_once_it_is_known(connect, service):
    service.timeline = 4
    async with connect() as client:
        await client.next_batch(2, policy_step=0)
        await client.next_batch(2, policy_step=0)
        assert client.timeline == 4
    first, second = service.requests("NextBatch")
    assert not first.HasField("timeline")
    assert second.timeline == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_count": 0}, "prompt_count=0: must be in [1, 4096]"),
        ({"prompt_count": 4097}, "prompt_count=4097: must be in [1, 4096]"),
        ({"policy_step": -1}, "policy_step=-1: must be in [0, 4294967294]"),
        ({"request_id": ""}, "request_id='': must be 1 to 128 bytes"),
        ({"rollout_budget": 1}, "rollout_budget=1: must be in [2, 65534]"),
        ({"rollout_budget": 65_535}, "rollout_budget=65535: must be in [2, 65534]"),
    ],
)
async def test_what_can_never_be_served_is_refused_before_it_is_sent(
    connect, service, arguments, message
):
    async with connect() as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.next_batch(**{"prompt_count": 2, "policy_step": 0, **arguments})
    assert str(caught.value) == message
    assert service.calls == []


async def test_release_publish_and_checkpoint_reach_the_service(connect, service):
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        assert await client.release(batch) == 3
        assert await client.publish_policy(5, "file:///weights/5") is None
        await client.checkpoint("step-3", 3)
        assert await client.checkpoint("step-5", 5) == {"step-3": 3, "step-5": 5}
    [release], [publish] = service.requests("ReleaseBatch"), service.requests("PublishPolicy")
    assert (release.batch_id, release.run_id) == ("default-0", "math")
    assert (publish.policy.policy_step, publish.policy.uri) == (5, "file:///weights/5")


def test_a_payload_that_is_no_object_says_so_when_it_is_read():
    message = batch_pb2.Batch(batch_id="b")
    message.prompts.add().prompt.payload_json = "[1]"
    message.prompts.add(slot=1)
    batch = decode_batch(message)
    with pytest.raises(CorruptStateError, match="not a JSON object"):
        _ = batch[0].payload
    assert batch[1].payload == {}


def test_every_reason_has_a_name_and_a_new_one_does_not_break_old_clients():
    message = batch_pb2.Batch()
    for value in (*batch_pb2.Reason.values(), 99):
        message.prompts.add(reason=value)
    names = [prompt.reason for prompt in decode_batch(message)]
    assert names[1:4] == ["edge", "explore", "review"]
    assert names[-1] == "reason-99"
