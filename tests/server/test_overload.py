"""Too many callers at once: they wait or are refused with a pause, and nothing grows."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import threading
import time
from argparse import Namespace
from contextlib import closing
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from curriculum_api.errors import OverloadedError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2
from curriculum_client import TrainerClient
from curriculum_server import app
from curriculum_server.admission import Bounds
from tests.bench import bench_overload as bench

NARROW = Bounds(line=4, running=1, running_per_run=1, held_bytes=10_000_000, wait_s=30)


@pytest.fixture
def narrow_server(monkeypatch, start_server):
    """A server with room for one call at a time and four in line."""
    monkeypatch.setattr(app, "STEP_BOUNDS", NARROW)
    return start_server()


@pytest.fixture
def locked(loop_thread):
    """Keeps a run's lock on a server, so that calls about it take as long as the block does."""

    class Locked:
        def __init__(self, server, run_id):
            self.served = server.app.engine.served(run_id)
            self.lock = self.served.run.lock

        def __enter__(self):
            loop_thread.call(self.lock.acquire())
            return self

        @property
        def waits(self):
            """Whether a call does; the server's own following of the run is none."""
            follows = self.served.refreshing is not None and not self.served.refreshing.done()
            return sum(not waiter.done() for waiter in self.lock._waiters or ()) > follows

        def __exit__(self, *_):
            async def release():
                self.lock.release()

            loop_thread.call(release())

    return Locked


@pytest.mark.timeout(90)
def test_a_storm_is_answered_as_promised_and_costs_no_memory():
    options = Namespace(
        **{"trainers": 40, "processes": 2, "greedy": 2, "slow": 15, "seconds": 8, "batch": 8},
        **{"alone_seconds": 0.5, "prompts": 2000, "polite": 2, "pause_s": 0.2},
    )
    with tempfile.TemporaryDirectory() as data_dir, closing(bench.Server(data_dir)) as server:
        bench.fill(server.address, options.prompts)
        with (
            bench.Memory(server=server.pid) as memory,
            bench.Polite(server.address, "polite", options) as polite,
        ):
            ended = bench.storm(server, options)
        answers = server.answers()
        warnings = server.warnings
    # The unfinished requests of slow callers are given up after a while.
    assert answers.keys() <= bench.PROMISED | {"DEADLINE_EXCEEDED"}, warnings
    assert ended["train"].keys() == {"OK"}
    assert not polite.errors
    assert len(polite.times_ms["next_batch"]) > 5
    assert memory.figures("server")["server_rss_max_ratio"] < 1.25


def test_a_refused_call_says_when_to_come_back(narrow_server, open_run, locked):
    run = open_run(10).through(narrow_server.stubs)
    run.play(0)
    with locked(narrow_server, run.run_id):
        calls = [run.stubs.trainer.NextBatch.future(run.next_request()) for _ in range(9)]
        refused = [call for call in calls if _failed(call)]
        assert len(refused) == 4
        for call in refused:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            metadata = dict(call.trailing_metadata())
            assert metadata["curriculum-error"] == "OverloadedError"
            assert int(metadata["grpc-retry-pushback-ms"]) >= 100
        answer = health_pb2_grpc.HealthStub(run.stubs.channel).Check(
            health_pb2.HealthCheckRequest(), timeout=5
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert run.stubs.operator.ListRuns(op.ListRunsRequest(page_size=1), timeout=5)
    for call in set(calls) - set(refused):
        assert call.result(timeout=10).batch.batch_id


def _failed(call):
    """Whether it is refused at once."""
    try:
        return call.exception(timeout=0.5) is not None
    except grpc.FutureTimeoutError:
        return False


def test_clients_learn_how_long_to_wait(monkeypatch, start_server, open_run, locked):
    monkeypatch.setattr(app, "STEP_BOUNDS", replace(NARROW, wait_s=0.2))
    server = start_server()
    run = open_run(10).through(server.stubs)
    run.play(0)
    with TrainerClient(server.address, run_id=run.run_id, retry_s=0) as impatient:
        with locked(server, run.run_id):
            running = run.stubs.trainer.NextBatch.future(run.next_request())
            with pytest.raises(OverloadedError, match="this one did for") as refused:
                impatient.next_batch(1, policy_step=0)
        assert refused.value.retry_after_s >= 0.1
        assert running.result(timeout=10).batch.batch_id
        assert len(impatient.next_batch(1, policy_step=0)) == 1


def test_a_call_whose_deadline_passes_in_line_is_never_served(
    narrow_server, open_run, locked, wait_until
):
    run = open_run(10).through(narrow_server.stubs)
    run.play(0)
    with locked(narrow_server, run.run_id) as lock:
        for number in range(5):
            with pytest.raises(grpc.RpcError) as late:
                run.stubs.trainer.NextBatch(run.next_request(f"late-{number}"), timeout=0.1)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: not lock.waits)
    in_time = run.next("in time", count=10)
    # None of the late ones has leased a prompt.
    assert len(in_time.prompts) == 10


def test_refused_calls_leave_nothing_behind(start_server, raw, open_run):
    run = open_run(5)
    server = start_server()
    keys, engine = raw.dbsize(), server.app.engine
    labels = sum(1 for metric in REGISTRY.collect() for _ in metric.samples)
    for number in range(3000):
        with pytest.raises(grpc.RpcError):
            server.stubs.operator.GetStats(op.GetStatsRequest(run_id=f"none-{number}"))
    assert raw.dbsize() == keys
    assert len(engine._served) <= 300
    assert sum(1 for metric in REGISTRY.collect() for _ in metric.samples) <= labels + 30
    assert run.through(server.stubs).get().prompt_count == 5


def test_thousands_of_refused_calls_cost_no_memory(launch, store_url, connect_to, open_run):
    run = open_run(5)
    server = launch("--redis", store_url, "--log-level", "warning").wait_until_serving()
    stubs = connect_to(server.address)
    huge = op.AddPromptsRequest(run_id=run.run_id, prompts=[prompt_pb2.Prompt(text="x" * 300_000)])
    ways = [
        (stubs.trainer.NextBatch, run.next_request(count=0)),
        (stubs.operator.GetRun, op.GetRunRequest(run_id="none")),
        (stubs.operator.GetRun, op.GetRunRequest(run_id="/" * 10_000)),
        (stubs.operator.AddPrompts, huge),
    ]
    # What a first round of them needs stays: pools, caches, the allocator's arenas.
    before_mb = 0.0
    for round_number in range(4):
        for call, request in ways:
            for _ in range(300):
                with pytest.raises(grpc.RpcError):
                    call(request)
        if round_number == 0:
            before_mb = bench.resident_mb(server.pid)
    assert bench.resident_mb(server.pid) - before_mb < 10


def test_a_refused_call_is_freed_without_a_collection(server, stubs):
    """What it keeps alive is gRPC's call and its request; collections are rare here on purpose."""

    def refuse(count):
        for _ in range(count):
            with pytest.raises(grpc.RpcError):
                stubs.operator.GetRun(op.GetRunRequest(run_id="/"))

    refuse(5)
    gc.collect()
    gc.disable()
    try:
        refuse(100)
        kept = sum(type(found).__name__ == "RPCState" for found in gc.get_objects())
    finally:
        gc.enable()
    assert kept < 20


async def _longest_turn(stop):
    """The most processor time that the loop's thread spent between two turns of this task."""
    longest = 0.0
    while not stop.is_set():
        started = time.thread_time()
        await asyncio.sleep(0.001)
        longest = max(longest, time.thread_time() - started)
    return longest


def test_a_full_page_of_prompts_lets_others_in_between(loop_thread, open_run):
    run = open_run(0)
    prompts = [
        prompt_pb2.Prompt(
            prompt_id=f"p{i}", domain="d", text="x" * 3000, payload_json=f'{{"a": {[i] * 100}}}'
        )
        for i in range(4096)
    ]
    request = op.AddPromptsRequest(run_id=run.run_id, prompts=prompts)
    stop = threading.Event()
    turns = loop_thread.begin(_longest_turn(stop))
    run.stubs.operator.AddPrompts(request)
    stop.set()
    # To check and encode all of them in one go takes 70 ms and more of this.
    assert turns.result(10) < 0.15
