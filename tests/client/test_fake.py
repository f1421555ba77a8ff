"""The fake that users test their loops with: what it adds to the service."""

from __future__ import annotations

import asyncio
import doctest
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress

import grpc
import pytest

from curriculum_api.v1 import probe_service_pb2
from curriculum_api.v1.probe_service_pb2_grpc import ProbeServiceStub
from curriculum_client import (
    ConflictError,
    CurriculumError,
    InvalidRequestError,
    OverloadedError,
    Receipt,
    StateError,
    StoreUnavailableError,
    testing,
)
from curriculum_client.testing import FakeCurriculum

GROUP = [1.0, 0.0, 1.0, 0.0]
POOL = 12
GRPC = tuple(map(int, grpc.__version__.split(".")[:2]))

FORKING = """
import os
from curriculum_client.testing import FakeCurriculum
with FakeCurriculum(map(str, range(40)), 2) as fake, fake.client(retry_s=10) as client:
    client.report(client.next_batch(1, policy_step=0), [[0, 1]], policy_step=0)
    for child in range(3):
        if os.fork() == 0:
            for n in range(3):
                batch = client.next_batch(2, policy_step=0, request_id=f"{child}-{n}")
                client.report(batch, [[0, 1]] * 2, policy_step=0)
            client.close()
            os._exit(0)
    client.report(client.next_batch(1, policy_step=0), [[0, 1]], policy_step=0)
    assert [os.wait()[1] for _ in range(3)] == [0, 0, 0]
    assert sum(fake.attempts.values()) == 2 * (1 + 3 * 3 * 2 + 1), fake.attempts
"""


@pytest.fixture
def fake():
    with FakeCurriculum(map(str, range(POOL)), 4) as fake:
        yield fake


def ids(batch):
    return [prompt.prompt_id for prompt in batch]


def is_flushed(client):
    with suppress(StoreUnavailableError):
        client.flush()
    return client.buffered_reports == 0


def test_the_example_runs():
    assert doctest.testmod(testing) == (0, 4)


def test_what_happened_is_recorded(fake):
    with fake.client() as client:
        first, second = (client.next_batch(2, policy_step=step) for step in (0, 1))
        client.next_batch(2, policy_step=0, request_id=first.batch_id)
        client.report(first, [GROUP, [0.25]], policy_step=0)
        client.report(second, [GROUP] * 2, policy_step=1)
        assert fake.batches == [first, second]
        assert fake.unreported == [first]
        assert fake.rewards[first[1].prompt_id] == [0.25]
        assert sorted(fake.attempts.values()) == [1, 4, 4, 4]
        client.release(first)
        assert fake.unreported == []
        assert Counter(fake.calls) == {
            ("NextBatch", "OK"): 3,
            ("ReportOutcomes", "OK"): 2,
            ("ReleaseBatch", "OK"): 1,
        }


def test_a_rollback_takes_back_what_its_checkpoint_did_not_have(fake):
    with fake.client() as client:
        client.report(client.next_batch(2, policy_step=0), [GROUP] * 2, policy_step=0)
        client.checkpoint("a", 0)
        before = fake.rewards
        client.report(client.next_batch(2, policy_step=1), [GROUP] * 2, policy_step=1)
        assert len(fake.rewards) == 4
        client.rollback("a")
        assert (fake.rewards, fake.unreported, len(fake.batches)) == (before, [], 2)


def test_the_order_follows_from_the_seed():
    def served(seed):
        with FakeCurriculum(map(str, range(50)), seed=seed) as fake, fake.client() as client:
            return ids(client.next_batch(50, policy_step=0))

    assert served(1) == served(1) != served(2)


def test_prompts_are_as_they_were_given():
    given = {"text": "1 + 1 = ?", "domain": "sums", "payload": {"answer": 2}, "tags": ["easy"]}
    given |= {"prompt_id": "one", "features": {"level": 3}}
    with FakeCurriculum([given]) as fake, fake.client() as client:
        [prompt] = client.next_batch(1, policy_step=0)
    assert (prompt.prompt_id, prompt.domain, prompt.payload) == ("one", "sums", {"answer": 2})
    assert (prompt.tags, prompt.features, prompt.attempt_count) == (("easy",), {"level": 3}, 8)
    assert (prompt.pass_rate, prompt.reason) == (0.5, "uniform")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [{"txt": "?"}]}, r"prompts\[0\]: .*txt"),
        ({"prompts": [{"text": 3}]}, r"prompts\[0\]: "),
        ({"prompts": ["?", {"prompt_id": "p0"}]}, r"prompts\[1\]: prompt_id='p0' is taken"),
        ({"group_size": 1}, r"group_size=1: must be in \[2, 1024\]"),
        ({"pass_threshold": 2.0}, r"pass_threshold=2: must be in \(0, 1\]"),
    ],
)
def test_a_fake_that_cannot_be_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(InvalidRequestError, match=message):
        FakeCurriculum(**{"prompts": ["?"], **arguments})
    with pytest.raises(StateError, match="must be entered"):
        FakeCurriculum(["?"]).client()


def test_injected_failures_are_retried_and_recorded(fake):
    with fake.client() as client:
        fake.fail_next(1)
        fake.fail_next(2, OverloadedError("too many"), method="ReportOutcomes")
        batch = client.next_batch(1, policy_step=0)
        assert client.report(batch, [GROUP], policy_step=0) == Receipt(4, 2, 1, 1)
    overloaded = [("ReportOutcomes", "RESOURCE_EXHAUSTED")] * 2
    assert fake.calls == [
        ("NextBatch", "UNAVAILABLE"), ("NextBatch", "OK"), *overloaded, ("ReportOutcomes", "OK"),
    ]  # fmt: skip


def test_an_answer_that_is_lost_counts_once(fake):
    with fake.client() as client:
        fake.fail_next(method="NextBatch", is_applied=True)
        fake.fail_next(method="ReportOutcomes", is_applied=True)
        batch = client.next_batch(1, policy_step=0)
        receipt = client.report(batch, [GROUP], policy_step=0)
    assert receipt == Receipt(4, 2, 1, 1, duplicate=True)
    assert (fake.batches, sum(fake.attempts.values())) == ([batch], 4)


def test_other_injected_errors_are_raised_as_they_are(fake):
    with fake.client() as client:
        for error in (ConflictError("another rank rolled back"), CurriculumError("broken")):
            fake.fail_next(1, error)
            with pytest.raises(type(error), match=str(error)):
                client.next_batch(1, policy_step=0)
        with pytest.raises(InvalidRequestError, match="method='Next': must be"):
            fake.fail_next(method="Next")


def test_a_service_that_is_slow_meets_the_deadline(fake):
    with fake.client(timeout_s=0.1, retry_s=0) as client:
        fake.delay_s = 30.0
        with pytest.raises(TimeoutError):
            client.next_batch(1, policy_step=0)


def test_reports_are_kept_while_it_is_away_and_sent_when_it_is_back(fake, wait_until):
    with fake.client(retry_s=0.2) as client:
        batch = client.next_batch(1, policy_step=0)
        fake.go_away()
        with pytest.raises(StoreUnavailableError):
            client.next_batch(1, policy_step=1)
        assert client.report(batch, [GROUP], policy_step=0) is None
        assert (client.buffered_reports, fake.unreported) == (1, [batch])
        target = fake.target
        fake.come_back()
        assert fake.target == target
        wait_until(lambda: is_flushed(client))  # grpc connects again in its own time
        assert (client.buffered_reports, fake.unreported) == (0, [])


def test_expired_leases_return_to_the_pool(fake):
    with fake.client() as client:
        late = client.next_batch(POOL, policy_step=0)
        fake.expire_leases()
        assert len(client.next_batch(POOL, policy_step=0)) == POOL
        assert client.report(late, [GROUP] * POOL, policy_step=0).attempt_count == 4 * POOL


def test_threads_and_copies_of_a_client_get_batches_of_their_own(fake):
    def take(client):
        client.report(client.next_batch(1, policy_step=0), [GROUP], policy_step=0)

    with fake.client() as client:
        threads = [threading.Thread(target=take, args=(client,)) for _ in range(POOL)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pickle.loads(pickle.dumps(client)) as other:
            take(other)
    assert sorted(fake.attempts.values()) == [4] * (POOL - 1) + [8]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(GRPC < (1, 85), reason="older grpcio cannot fork a process that served")
def test_forked_children_ask_the_fake_of_their_parent():
    inherited = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "skipping fork" not in done.stderr


def test_asyncio_clients_work_too(fake):
    async def loop():
        async with fake.async_client() as client:
            batch = await client.next_batch(2, policy_step=0)
            return await client.report(batch, [GROUP] * 2, policy_step=0)

    assert asyncio.run(loop()) == Receipt(8, 4, 2, 2)


def test_what_probers_and_operators_call_is_not_implemented(fake):
    with grpc.insecure_channel(fake.target) as channel:
        request = probe_service_pb2.LeaseProbesRequest(run_id="fake")
        with pytest.raises(grpc.RpcError) as caught:
            ProbeServiceStub(channel).LeaseProbes(request)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details().startswith("FakeCurriculum plays TrainerService alone")
