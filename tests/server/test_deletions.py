"""Deletions that are repeated or cut off, beside what comes after them."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_server.engine.config import RunConfig
from curriculum_server.store.commit import create_run, delete_run
from curriculum_server.store.connection import connect
from curriculum_server.store.document import Document
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.load import load_header


async def test_a_deletion_that_is_overtaken_leaves_the_next_run_of_the_name_alone(store_url):
    """It looks for keys while a repeat of it ends and the run is made anew."""
    keys, document = RunKeys("overtaken"), Document(config=RunConfig().to_mapping())
    redis, slow = connect(store_url), connect(store_url)
    looked, gate, scan = asyncio.Event(), asyncio.Event(), slow.scan_iter

    async def scan_and_wait(*arguments, **options):
        found = [key async for key in scan(*arguments, **options)]
        looked.set()
        await gate.wait()
        for key in found:
            yield key

    slow.scan_iter = scan_and_wait
    await create_run(redis, keys, document)
    overtaken = asyncio.create_task(delete_run(slow, keys))
    await looked.wait()
    await delete_run(redis, keys)
    assert await create_run(redis, keys, document)
    gate.set()
    await overtaken
    assert await load_header(redis, keys) is not None
    assert await redis.exists(keys.events)
    await delete_run(redis, keys)
    await redis.aclose()
    await slow.aclose()


def test_an_import_whose_name_is_being_deleted_makes_no_run(stubs, open_run, refused, store_url):
    """The deletion is cut off before it has removed a key."""
    run = open_run(5)
    parts = stubs.operator.ExportRun(op.ExportRunRequest(run_id=run.run_id)).parts
    name = f"{run.run_id}-copy"
    stubs.operator.ImportRun(op.ImportRunRequest(run_id=name, request_id="i", parts=parts))
    asyncio.run(delete_and_stop(store_url, RunKeys(name)))
    commit = op.ImportRunRequest(run_id=name, request_id="i", commit=True)
    assert refused(stubs.operator.ImportRun, commit).status == "FAILED_PRECONDITION"
    assert refused(stubs.operator.CreateRun, op.CreateRunRequest(run_id=name)).status == (
        "FAILED_PRECONDITION"
    )
    stubs.operator.DeleteRun(op.DeleteRunRequest(run_id=name))
    with pytest.raises(grpc.RpcError, match="there is no such run"):
        stubs.operator.GetRun(op.GetRunRequest(run_id=name))


async def delete_and_stop(store_url, keys):
    redis = connect(store_url)

    async def stop(*arguments, **options):
        raise InterruptedError
        yield

    redis.scan_iter = stop
    with pytest.raises(Exception, match="store cannot be reached"):  # as it is told to a caller
        await delete_run(redis, keys)
    await redis.aclose()
