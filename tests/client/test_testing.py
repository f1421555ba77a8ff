"""What the fake that users test their loops with has in common with the service."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_client import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    Receipt,
    StateError,
    TrainerClient,
)
from curriculum_client.testing import FakeCurriculum
from curriculum_server.app import App
from curriculum_server.config import ServerConfig

GROUP = [1.0, 0.0, 1.0, 0.0]
POOL = 12


@pytest.fixture(scope="module")
def service_address(loop_thread, store_url):
    """The real one; tests/client has a `server` of its own."""

    async def start():
        app = App(ServerConfig(listen="127.0.0.1:0", metrics="off", drain_s=1, redis=store_url))
        return app, (await app.start()).address

    app, address = loop_thread.call(start())
    yield address
    loop_thread.call(app.stop())


@pytest.fixture
def make_real(service_address):
    with grpc.insecure_channel(service_address) as channel:
        operator = OperatorServiceStub(channel)

        def make(prompts, group_size, lease_ttl_s=3600, pass_threshold=None):
            run_id = f"testing-{next(_numbers)}"
            config = run_pb2.RunConfig(
                selection=run_pb2.SelectionConfig(strategy="uniform", group_size=group_size),
                lease_ttl=Duration(seconds=lease_ttl_s),
                pass_threshold=pass_threshold,
            )
            operator.CreateRun(op.CreateRunRequest(run_id=run_id, config=config))
            added = [
                prompt_pb2.Prompt(prompt_id=f"p{n}", domain="default", text=text)
                for n, text in enumerate(prompts)
            ]
            operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=added))
            return lambda **options: TrainerClient(service_address, run_id, **options)

        yield make


_numbers = itertools.count()


@pytest.fixture(params=["fake", "service"])
def new_run(request):
    """Makes runs of both kinds, each a function that makes its clients."""
    fakes = []

    def make(prompt_count=POOL, group_size=4, **options):
        prompts = [f"{n} + 1 = ?" for n in range(prompt_count)]
        if request.param == "service":
            return request.getfixturevalue("make_real")(prompts, group_size, **options)
        fakes.append(FakeCurriculum(prompts, group_size, **options).__enter__())
        return fakes[-1].client

    yield make
    for fake in fakes:
        fake.__exit__(None, None, None)


def ids(batch):
    return [prompt.prompt_id for prompt in batch]


def content(batch):
    return [(p.slot, p.prompt_id, p.text, p.attempt_count, p.reason) for p in batch]


def test_a_repeated_request_gives_the_same_batch_and_another_one_is_refused(new_run):
    connect = new_run()
    with connect() as one, connect() as other:
        batch = one.next_batch(5, policy_step=0)
        assert (len(batch), batch.batch_id, batch.timeline) == (5, "default-0", 0)
        assert {p.attempt_count for p in batch} == {4}
        assert {p.reason for p in batch} == {"uniform"}
        assert {p.domain for p in batch} == {"default"}
        assert other.next_batch(5, policy_step=0) == batch
        for changes in ({"prompt_count": 4}, {"policy_step": 1}, {"rollout_budget": 9}):
            wanted = {"prompt_count": 5, "policy_step": 0, "request_id": "default-0", **changes}
            with pytest.raises(AlreadyExistsError, match="was used with other content"):
                other.next_batch(**wanted)


def test_every_prompt_is_served_once_before_any_twice(new_run):
    with new_run()() as client:
        served = Counter()
        for step in range(8):
            batch = client.next_batch(3, policy_step=step)
            served.update(ids(batch))
            client.report(batch, [GROUP] * 3, policy_step=step)
            assert max(served.values()) == 1 + step // 4
        assert list(served.values()) == [2] * POOL


def test_a_report_counts_once_whoever_repeats_it(new_run):
    connect = new_run()
    with connect() as one, connect(reporter="other") as other:
        batch = one.next_batch(2, policy_step=0)
        rewards = [GROUP, [0.0] * 4]
        receipt = one.report(batch, rewards, policy_step=0, part="all")
        assert receipt == Receipt(8, 2, 2, 1)
        again = other.report(batch, rewards, policy_step=0, part="all")
        assert again == replace(receipt, duplicate=True)
        with pytest.raises(AlreadyExistsError, match="was used with other content"):
            other.report(batch, [GROUP, GROUP], policy_step=0, part="all")


def test_a_partial_report_then_the_rest_completes_the_group(new_run):
    with new_run()() as client:
        batch = client.next_batch(2, policy_step=0)
        assert client.report(batch, {0: [1.0], 1: [0.0] * 3}, policy_step=0) == Receipt(4, 1)
        assert client.report(batch, {0: [1.0]}, policy_step=1) == Receipt(1, 1)
        rest = {0: [0.0, 0.0], 1: [0.0]}
        assert client.report(batch, rest, policy_step=1) == Receipt(3, 0, 2, 1)


def test_more_attempts_than_allotted_are_refused_and_none_is_counted(new_run):
    with new_run()() as client:
        batch = client.next_batch(2, policy_step=0)
        with pytest.raises(StateError, match="must be given at most 4 attempts; 0 are reported"):
            client.report(batch, [[1.0] * 4, [1.0] * 5], policy_step=0)
        assert client.report(batch, [[1.0] * 4, []], policy_step=0) == Receipt(4, 4, 1)
        with pytest.raises(StateError, match=r"at most 4 attempts; 4 are .* 1 came; .*closed"):
            client.report(batch, {0: [1.0]}, policy_step=0)


def test_rewards_pass_as_they_travel_and_those_out_of_range_are_refused(new_run):
    with new_run(pass_threshold=0.7)() as client:
        batch = client.next_batch(1, policy_step=0)
        for wrong in (-1.0, 1.5):
            with pytest.raises(InvalidRequestError) as caught:
                client.report(batch, [[1.0, wrong]], policy_step=0)
            assert str(caught.value) == f"outcomes.rewards[1]={wrong:g}: must be in [0, 1]"
        assert client.report(batch, [[0.7, 0.69]], policy_step=0) == Receipt(2, 1)


def test_leased_prompts_are_withheld_and_a_dry_pool_says_why(new_run):
    with new_run()() as client:
        one, other = (client.next_batch(7, policy_step=0) for _ in range(2))
        assert not set(ids(one)) & set(ids(other))
        assert one.shortfall == ""
        assert (len(other), other.shortfall) == (
            5,
            "5 of 7: 7 prompts are leased, the rest of the pool is empty",
        )
        nothing = client.next_batch(7, policy_step=0)
        assert (len(nothing), nothing.is_fallback) == (0, False)
        assert nothing.shortfall.startswith("0 of 7: 12 prompts are leased")


def test_release_frees_what_was_not_reported(new_run):
    with new_run()() as client:
        batch = client.next_batch(POOL, policy_step=0)
        client.report(batch, {0: GROUP, 1: [1.0]}, policy_step=0)
        assert [client.release(batch) for _ in range(2)] == [POOL - 1, 0]
        with pytest.raises(StateError, match=r"1 are reported and 1 came; .*closed"):
            client.report(batch, {1: [1.0]}, policy_step=0)
        assert len(client.next_batch(POOL, policy_step=0)) == POOL


def test_a_lease_runs_out_and_a_late_report_still_counts(new_run, wait_until):
    with new_run(lease_ttl_s=1)() as client:
        late = client.next_batch(POOL, policy_step=0)
        assert len(client.next_batch(1, policy_step=0)) == 0
        batch = wait_until(lambda: client.next_batch(POOL, policy_step=0).prompts)
        assert len(batch) == POOL
        assert client.report(late, {0: GROUP}, policy_step=0) == Receipt(4, 2, 1, 1)


def test_a_budget_is_spent_and_prompts_that_it_does_not_reach_are_left_out(new_run):
    with new_run()() as client:
        batch = client.next_batch(3, policy_step=0, rollout_budget=14)
        assert sorted(p.attempt_count for p in batch) == [4, 5, 5]
        few = client.next_batch(3, policy_step=0, rollout_budget=5)
        assert sum(p.attempt_count for p in few) == 5
        assert len(few) == 2
        assert few.shortfall.startswith("2 of 3: rollout_budget")
        most = client.next_batch(1, policy_step=0, rollout_budget=100)
        assert [p.attempt_count for p in most] == [16]


def test_a_resumed_loop_gets_the_same_batches_also_those_fetched_ahead(new_run):
    connect = new_run()

    def train(client, steps):
        """Fetches a batch ahead; what was served, and the state from before the one in flight."""
        served, states = [client.next_batch(3, policy_step=steps[0])], []
        for step in steps:
            client.report(served[-1], [GROUP] * 3, policy_step=step)
            states.append(client.state_dict())
            served.append(client.next_batch(3, policy_step=step + 1))
            if step == 2:
                client.checkpoint("at-2", 2)
        return list(map(content, served)), states

    with connect() as client:
        first, states = train(client, range(7))
    with connect() as resumed:
        resumed.load_state_dict(json.loads(json.dumps(states[2])))
        assert resumed.rollback("at-2") == 2
        assert resumed.timeline == 1
        assert train(resumed, range(3, 7))[0] == first[3:]


def test_an_old_timeline_is_refused_after_a_rollback(new_run):
    connect = new_run()
    with connect() as client, connect() as stale:
        assert client.checkpoint("a", 0) == {"a": 0}
        lost = client.next_batch(2, policy_step=1)
        stale.next_batch(2, policy_step=1)
        assert client.rollback("a") == 0
        for call in (
            lambda: client.report(lost, [GROUP] * 2, policy_step=1),
            lambda: client.release(lost),
            lambda: stale.next_batch(2, policy_step=1),
            lambda: stale.checkpoint("b", 1),
        ):
            with pytest.raises(ConflictError, match="timeline=0: must be 1"):
                call()
        assert len(client.next_batch(POOL, policy_step=1)) == POOL


def test_checkpoints_are_kept_dropped_and_taken_as_the_contract_says(new_run):
    with new_run()() as client:
        for step, name in enumerate("abc"):
            client.next_batch(1, policy_step=step)
            kept = client.checkpoint(name, step)
        assert list(kept.items()) == [("a", 0), ("b", 1), ("c", 2)]
        assert client.checkpoint("a", 0) == kept
        assert client.delete_checkpoint("x") == kept
        with pytest.raises(AlreadyExistsError, match=r"'a': is the checkpoint at step 0"):
            client.checkpoint("a", 2)
        with pytest.raises(StateError, match=r"checkpoint.policy_step=1: must be at least 2"):
            client.checkpoint("d", 1)
        assert [client.rollback("b", request_id="once") for _ in range(2)] == [1, 1]
        assert client.timeline == 1
        with pytest.raises(AlreadyExistsError, match="request_id='once': was used"):
            client.rollback("a", request_id="once")
        with pytest.raises(NotFoundError, match="'c': is not kept; kept are 'a', 'b'"):
            client.rollback("c")
        assert client.delete_checkpoint("a") == {"b": 1}


def test_what_does_not_exist_and_what_cannot_be_meant_is_refused(new_run):
    connect = new_run()
    with connect() as client:
        batch = client.next_batch(1, policy_step=0)
        other = replace(batch, batch_id="other")
        for call in (
            lambda: client.report(other, [GROUP], policy_step=0),
            lambda: client.release(other),
        ):
            with pytest.raises(NotFoundError, match="batch_id='other': there is no such batch"):
                call()
        later = replace(batch, timeline=7)
        with pytest.raises(InvalidRequestError, match="timeline=7: must be 0"):
            client.release(later)
        for call in (
            lambda: client.next_batch(1, policy_step=10_001),
            lambda: client.report(batch, [GROUP], policy_step=10_001),
            lambda: client.publish_policy(10_001, "file:///weights"),
            lambda: client.checkpoint("a", 10_001),
        ):
            with pytest.raises(
                InvalidRequestError, match=r"policy_step=10001: must be in \[0, 100"
            ):
                call()
        client.publish_policy(3, "file:///weights")
    stranger = TrainerClient(client._core.settings.target, "no-such-run")
    with stranger, pytest.raises(NotFoundError, match="run_id='no-such-run': there is no such run"):
        stranger.next_batch(1, policy_step=0)
