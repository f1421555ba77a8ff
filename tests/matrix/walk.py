"""A trainer's whole way through the client, with a real server: python walk.py ADDRESS RUN."""

from __future__ import annotations

import asyncio
import importlib.metadata
import multiprocessing
import pickle
import sys
from typing import Any

# Before grpc, as its documentation asks.
from curriculum_client import AsyncTrainerClient, Batch, Feed, NotFoundError, TrainerClient
from curriculum_client.testing import FakeCurriculum

# isort: split
import grpc

from curriculum_api.v1 import operator_service_pb2 as operator
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.prompt_pb2 import Prompt

POOL_SIZE, GROUP_SIZE, PROMPT_COUNT = 64, 8, 8


def main(address: str, run_id: str) -> None:
    """Every call once; the attempts that the server then has."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("protobuf", "grpcio")]
    print("walking with", sys.version.partition(" ")[0], *versions, flush=True)
    create_run(address, run_id)
    with TrainerClient(address, run_id) as client:
        batch = client.next_batch(PROMPT_COUNT, policy_step=0)
        receipt = client.report(batch, rewards(batch), policy_step=0)
        assert receipt is not None
        assert receipt.mixed_group_count == PROMPT_COUNT
        client.checkpoint("start", 1)
        in_forked_child(client)
        fed(client)
        client.publish_policy(1, "/weights")
        assert client.rollback("start") == 1
        refused(client)
        client.delete_checkpoint("start")
    assert attempts(address, run_id) == PROMPT_COUNT * GROUP_SIZE
    asyncio.run(awaited(address, run_id))
    assert attempts(address, run_id) == 2 * PROMPT_COUNT * GROUP_SIZE
    faked()


def create_run(address: str, run_id: str) -> None:
    """A run with a pool."""
    with grpc.insecure_channel(address) as channel:
        stub = OperatorServiceStub(channel)
        stub.CreateRun(operator.CreateRunRequest(run_id=run_id))
        texts = [f"{n} + {n}" for n in range(POOL_SIZE)]
        prompts = [Prompt(prompt_id=text, text=text, domain="sums") for text in texts]
        stub.AddPrompts(operator.AddPromptsRequest(run_id=run_id, prompts=prompts))


def attempts(address: str, run_id: str) -> int:
    """What the server has counted."""
    with grpc.insecure_channel(address) as channel:
        request = operator.GetStatsRequest(run_id=run_id)
        return int(OperatorServiceStub(channel).GetStats(request).stats.attempt_count)


def rewards(batch: Batch) -> dict[str, list[float]]:
    """Of each prompt's attempts, every other one passes."""
    return {p.prompt_id: [float(n % 2) for n in range(p.attempt_count)] for p in batch}


def in_forked_child(client: TrainerClient) -> None:
    """A forked child that reports to its parent's batch, and a copy that was pickled."""
    batch = client.next_batch(PROMPT_COUNT, policy_step=1)
    process = multiprocessing.get_context("fork").Process(target=reported, args=(client, batch))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    copy: TrainerClient = pickle.loads(pickle.dumps(client))
    assert copy.report(batch, {0: [1.0]}, policy_step=1)
    copy.close()


def reported(client: TrainerClient, batch: Batch) -> None:
    """In the child."""
    assert client.report(batch, {1: [1.0]}, policy_step=1)


def fed(client: TrainerClient) -> None:
    """Batches that follow each other."""
    with Feed(client, PROMPT_COUNT) as feed:
        for step in (1, 2):
            leases = [p.lease for p in feed.next_batch() for _ in range(p.attempt_count)]
            receipt = feed.report(leases, [0.0, 1.0] * (len(leases) // 2), policy_step=step)
            assert receipt is not None
            assert receipt.attempt_count == len(leases)


def refused(client: TrainerClient) -> None:
    """Errors keep their kind and their words."""
    try:
        client.rollback("another")
    except NotFoundError as error:
        said = str(error)
    assert "another" in said


async def awaited(address: str, run_id: str) -> None:
    """The same for asyncio."""
    async with AsyncTrainerClient(address, run_id, consumer="asyncio") as client:
        batch = await client.next_batch(PROMPT_COUNT, policy_step=1)
        leases = [p.lease for p in batch for _ in range(p.attempt_count)]
        receipt: Any = await client.report_attempts(leases, [1.0] * len(leases), policy_step=1)
        assert receipt.pass_count == PROMPT_COUNT * GROUP_SIZE


def faked() -> None:
    """Without a server."""
    with FakeCurriculum(["a", "b"], group_size=2) as fake, fake.client() as client:
        client.report(client.next_batch(2, policy_step=0), [[0, 1], [1, 1]], policy_step=0)
    assert dict(fake.attempts) == {"p0": 2, "p1": 2}


if __name__ == "__main__":
    main(*sys.argv[1:])
