"""Every attempt counts, and counts once."""

from __future__ import annotations

import asyncio
import math

import pytest

from curriculum_api.limits import MAX_REPORT_ATTEMPTS
from curriculum_client import InvalidRequestError, Receipt

NAN, INF = math.nan, math.inf


class Tensor:
    """Enough of an array: rows and `tolist`."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, position):
        value = self.values[position]
        return Tensor(value) if isinstance(value, list) else value

    def tolist(self):
        return self.values


@pytest.mark.parametrize(
    "rewards",
    [
        {"p0": [1.0, 0.0], "p1": [0.5]},
        {1: (0.5,), 0: (True, 0)},
        [[1.0, 0.0], [0.5], None],
        {"p2": [], "p1": [0.5], "p0": [1, 0]},
        [Tensor([1.0, 0.0]), Tensor([0.5]), []],
    ],
    ids=["by prompt_id", "by slot", "in order", "with an empty row", "arrays"],
)
async def test_rewards_may_have_any_natural_shape(connect, service, rewards):
    async with connect() as client:
        batch = await client.next_batch(3, policy_step=4)
        receipt = await client.report(batch, rewards, policy_step=5)
    assert receipt == Receipt(attempt_count=3, pass_count=1)
    [request] = service.requests("ReportOutcomes")
    assert (request.batch_id, request.policy_step) == ("default-0", 5)
    assert list(request.outcomes.slots) == [0, 0, 1]
    assert list(request.outcomes.rewards) == [1.0, 0.0, 0.5]
    assert not request.outcomes.token_counts


async def test_token_counts_and_channels_travel_with_their_attempts(connect, service):
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        await client.report(
            batch,
            {"p1": [1.0], "p0": [0.0, 1.0]},
            policy_step=0,
            token_counts={"p0": [10, 20], "p1": [30]},
            channels={"entropy": [[0.25, 0.5], [0.75]]},
        )
    [request] = service.requests("ReportOutcomes")
    assert list(request.outcomes.slots) == [0, 0, 1]
    assert list(request.outcomes.token_counts) == [10, 20, 30]
    assert list(request.outcomes.channels["entropy"].values) == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": {"p9": [1.0]}}, "rewards['p9']: not a prompt of batch 'default-0'"),
        ({"rewards": {2: [1.0]}}, "rewards[2]: not a prompt of batch 'default-0'"),
        ({"rewards": {None: [1.0]}}, "rewards[None]: not a prompt of batch 'default-0'"),
        ({"rewards": {"p0": [1.0], 0: [1.0]}}, "rewards[0]: the prompt is named twice"),
        ({"rewards": {"p0": [0, NAN]}}, "rewards['p0'][1]=nan: must be finite, as float32"),
        ({"rewards": [[-INF], []]}, "rewards[0][0]=-inf: must be finite, as float32"),
        ({"rewards": {"p0": [1e39]}}, "rewards['p0'][0]=1e+39: must be finite, as float32"),
        ({"rewards": {"p0": 1.0}}, "rewards['p0']=1.0: must be a sequence, one value per attempt"),
        ({"rewards": {"p0": ["x"]}}, "rewards['p0'][0]='x': could not convert string to float"),
        ({"rewards": [[1.0]]}, "rewards: has 1 entries for 2 prompts"),
        ({"token_counts": {"p0": [1]}}, "token_counts['p0']: has 1 values for 2 rewards"),
        ({"token_counts": {"p0": [1, -1]}}, "token_counts['p0'][1]=-1: must be in [0, 4294967295]"),
        ({"channels": {"c": {}}}, "channels['c']['p0']: has 0 values for 2 rewards"),
        ({"channels": {"c": [[1, 1], [1]]}}, "channels['c']['p1']: has 1 values for 0 rewards"),
        ({"policy_step": -1}, "policy_step=-1: must be in [0, 4294967294]"),
    ],
)
async def test_a_report_that_makes_no_sense_is_refused_before_it_is_sent(
    connect, service, arguments, message
):
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        with pytest.raises(InvalidRequestError) as caught:
            await client.report(
                **{"batch": batch, "rewards": {"p0": [1, 0]}, "policy_step": 0, **arguments}
            )
    assert str(caught.value).startswith(message)
    assert service.requests("ReportOutcomes") == []


async def test_a_report_of_nothing_is_not_sent(connect, service):
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        assert await client.report(batch, {}, policy_step=0) == Receipt()
    assert service.requests("ReportOutcomes") == []


async def test_a_repeat_after_a_lost_answer_counts_once(connect, service, lost_answer):
    service.failures["ReportOutcomes"].extend([lost_answer] * 2)
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        receipt = await client.report(batch, {"p0": [1.0]}, policy_step=0)
    assert receipt == Receipt(attempt_count=1, pass_count=1, duplicate=True)
    assert service.attempts == {("default-0", 0): 1}
    assert len(set(service.request_ids("ReportOutcomes"))) == 1


async def test_a_report_that_raised_and_is_made_again_counts_once(connect, service, lost_answer):
    service.failures["ReportOutcomes"].append(lost_answer)
    async with connect(retry_s=0, max_buffered_reports=0) as client:
        batch = await client.next_batch(2, policy_step=0)
        with pytest.raises(ConnectionError):
            await client.report(batch, {"p0": [1.0]}, policy_step=0)
        await client.report(batch, {"p0": [1.0]}, policy_step=0)
    assert service.attempts == {("default-0", 0): 1}


async def test_a_restarted_process_that_reports_the_same_counts_once(connect, service):
    for _ in range(2):
        async with connect() as client:
            batch = await client.next_batch(2, policy_step=0)
            for prompt_id in ("p0", "p1"):
                await client.report(batch, {prompt_id: [1.0]}, policy_step=0)
    assert service.attempts == {("default-0", 0): 1, ("default-0", 1): 1}


async def test_equal_reports_of_one_reporter_are_different_attempts(connect, service):
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        reports = [client.report(batch, {"p0": [1.0]}, policy_step=0) for _ in range(4)]
        await asyncio.gather(*reports)
    assert service.attempts == {("default-0", 0): 4}


async def test_equal_reports_of_two_reporters_are_different_attempts(connect, service):
    async with connect(reporter="rank-0") as one, connect(reporter="rank-1") as other:
        for client in (one, other):
            batch = await client.next_batch(2, policy_step=0)
            await client.report(batch, {"p0": [1.0]}, policy_step=0)
    assert service.attempts == {("default-0", 0): 2}


async def test_ranks_of_a_launcher_report_apart_by_themselves(connect, service, monkeypatch):
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        async with connect() as client:
            batch = await client.next_batch(2, policy_step=0)
            await client.report(batch, {"p0": [1.0]}, policy_step=0)
    assert service.attempts == {("default-0", 0): 2}


async def test_a_named_part_counts_once_whoever_reports_it(connect, service):
    async with connect(reporter="worker-0") as one, connect(reporter="worker-1") as other:
        batch = await one.next_batch(2, policy_step=0)
        for client in (one, other):
            await client.report(batch, {"p0": [1.0]}, policy_step=0, part="rollout-17")
        await other.report(batch, {"p0": [1.0]}, policy_step=0, part="rollout-18")
    assert service.attempts == {("default-0", 0): 2}


async def test_a_report_too_large_for_one_call_is_cut_and_still_counts_once(
    connect, service, away, all_rewards
):
    count = MAX_REPORT_ATTEMPTS - 1
    service.failures["ReportOutcomes"].extend([away])
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        rewards = {"p0": [1.0] * count, "p1": [0.0] * 3}
        for duplicate in (False, True):
            receipt = await client.report(batch, rewards, policy_step=0, part=1)
            assert receipt == Receipt(count + 3, count, duplicate=duplicate)
    assert service.attempts == {("default-0", 0): count, ("default-0", 1): 3}
    sizes = [len(request.outcomes.slots) for request in service.requests("ReportOutcomes")]
    assert sizes == [MAX_REPORT_ATTEMPTS] * 2 + [2, MAX_REPORT_ATTEMPTS, 2]
