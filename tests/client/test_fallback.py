"""The degraded mode that a trainer may ask for."""

from __future__ import annotations

import pytest

from curriculum_client import StoreUnavailableError
from curriculum_client._batch import ServedPrompt
from curriculum_client._fallback import SeenPrompts


async def test_the_default_is_to_raise(connect, server, service):
    async with connect(retry_s=0) as client:
        await client.next_batch(5, policy_step=0)
        server.stop()
        with pytest.raises(StoreUnavailableError):
            await client.next_batch(5, policy_step=1)
        assert client.fallback_batches == 0


async def test_prompts_seen_before_are_drawn_uniformly_and_marked(
    connect, server, client_log, all_rewards
):
    async with connect(retry_s=0, on_unavailable="uniform") as client:
        seen = [
            *await client.next_batch(5, policy_step=0),
            *await client.next_batch(5, policy_step=1),
        ]
        server.stop()
        drawn = [await client.next_batch(6, policy_step=2) for _ in range(2)]
        assert client.fallback_batches == 2
        for batch in drawn:
            assert (batch.batch_id, batch.policy_step, batch.is_fallback) == ("", 2, True)
            assert batch.lease_expire_time is None
            assert [prompt.slot for prompt in batch] == list(range(6))
            assert {prompt.reason for prompt in batch} == {"uniform-fallback"}
            assert len(set(batch.slots)) == 6
            assert set(batch.slots) <= {prompt.prompt_id for prompt in seen}
            assert await client.report(batch, all_rewards(batch), policy_step=2) is None
            assert await client.release(batch) == 0
        assert drawn[0].prompts != drawn[1].prompts
        assert client.buffered_reports == 0
    assert client_log.text.count("report dropped run=math") == 1


@pytest.mark.parametrize(
    ("budget", "counts", "shortfall"),
    [
        (23, [6, 6, 6, 5], ""),
        (8, [2, 2, 2, 2], ""),
        (7, [3, 2, 2], "the budget is for 3 prompts of 2 attempts"),
        (4 * 16, [16] * 4, ""),
        (4 * 16 + 1, [16] * 4, ""),
        (4 * 32_767, [16] * 4, ""),
    ],
)
async def test_a_budget_is_spread_evenly_over_what_is_drawn(
    connect, server, budget, counts, shortfall
):
    async with connect(retry_s=0, on_unavailable="uniform") as client:
        await client.next_batch(5, policy_step=0)
        server.stop()
        batch = await client.next_batch(4, policy_step=1, rollout_budget=budget)
        assert [prompt.attempt_count for prompt in batch] == counts
        assert batch.shortfall == shortfall
        # What was seen stays as it was served.
        assert {prompt.attempt_count for prompt in await client.next_batch(2, policy_step=1)} == {4}


async def test_a_client_that_has_seen_nothing_raises(connect, server):
    server.stop()
    async with connect(retry_s=0, on_unavailable="uniform") as client:
        with pytest.raises(StoreUnavailableError):
            await client.next_batch(5, policy_step=0)


async def test_the_service_takes_over_when_it_is_back(connect, service, away):
    async with connect(retry_s=0, on_unavailable="uniform") as client:
        await client.next_batch(5, policy_step=0)
        service.failures["NextBatch"].append(away)
        fallback = await client.next_batch(10, policy_step=1)
        assert (len(fallback), fallback.shortfall) == (5, "only 5 prompts were seen")
        assert (await client.next_batch(5, policy_step=2)).batch_id == "default-2"


async def test_a_refusal_is_no_reason_to_fall_back(connect, service):
    async with connect(on_unavailable="uniform") as client:
        await client.next_batch(5, policy_step=0)
        service.timeline += 1
        with pytest.raises(Exception, match="timeline=0: is over"):
            await client.next_batch(5, policy_step=1)


def prompt(name, text="x" * 1000, attempts=4, reason="edge"):
    return ServedPrompt(name, "d", text, "", (), {}, 0, attempts, 0.5, (0.0, 1.0), reason)


@pytest.mark.parametrize(
    ("served", "most"),
    [
        ([(False, [(8, "edge")])], 32),
        ([(False, [(32, "reach"), (8, "edge"), (20, "reach")])], 32),
        ([(False, [(8, "edge")]), (False, [(16, "reach")]), (True, [(31, "edge")])], 32),
        ([(False, [(8, "edge")]), (False, [(2, "review")])], 8),  # the group size was changed
        ([(False, [(1024, "edge")])], 4096),
        ([(True, [(2, "edge"), (7, "edge")]), (True, [(5, "edge")])], 7),
        ([(True, [])], 2),
    ],
)
def test_a_budget_gives_no_prompt_more_than_the_service_would(served, most):
    seen = SeenPrompts()
    seen.add([prompt("first", attempts=2)], has_budget=True)
    for number, (has_budget, batch) in enumerate(served):
        prompts = [prompt(f"{number}-{i}", "?", n, reason) for i, (n, reason) in enumerate(batch)]
        seen.add(prompts, has_budget=has_budget)
    drawn = seen.draw(1, policy_step=0, timeline=0, seed="s", rollout_budget=32_767)
    assert [prompt.attempt_count for prompt in drawn] == [most]


def test_memory_is_bounded_and_the_oldest_go_first():
    seen = SeenPrompts(max_chars=3 * 2024)
    seen.add([prompt("a"), prompt("b"), prompt("c")])
    seen.add([prompt("a"), prompt("d")])
    drawn = seen.draw(9, policy_step=0, timeline=0, seed="s")
    assert set(drawn.slots) == {"a", "c", "d"}
    seen.add([prompt("e", text="x" * 10_000)])
    assert len(seen) == 0
