"""Callers that do not finish what they begin, or do not take what they asked for."""

from __future__ import annotations

import itertools
import socket
import time
from contextlib import closing

import grpc
import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_client import TrainerClient
from curriculum_server import app, rpc
from tests.server.raw_http2 import DATA, GOAWAY, RawCaller

NEXT_BATCH = "/curriculum_api.v1.TrainerService/NextBatch"
ADD_PROMPTS = "/curriculum_api.v1.OperatorService/AddPrompts"
INVALID_ARGUMENT, DEADLINE_EXCEEDED, UNIMPLEMENTED = 3, 4, 12


@pytest.fixture
def raw_caller(server):
    callers = []

    def connect(**options):
        callers.append(RawCaller(server.address, **options))
        return callers[-1]

    yield connect
    for caller in callers:
        caller.close()


@pytest.mark.parametrize("path", [NEXT_BATCH, ADD_PROMPTS])
@pytest.mark.parametrize("body", [b"", b"\0\0\0", b"\0\0\0\0\x64half of it"])
def test_a_request_that_does_not_arrive_is_given_up(raw_caller, monkeypatch, path, body):
    monkeypatch.setattr(rpc, "READ_LIMIT_S", 0.2)
    caller = raw_caller()
    stream = caller.begin(path)
    caller.send(stream, body)
    assert caller.status(stream) == DEADLINE_EXCEEDED


def test_a_call_without_a_request_is_refused(raw_caller):
    caller = raw_caller()
    stream = caller.begin(NEXT_BATCH)
    caller.send(stream, b"", end=True)
    assert caller.status(stream) == INVALID_ARGUMENT


def test_unfinished_requests_keep_nobody_waiting(raw_caller, open_run):
    run = open_run(20)
    for _ in range(10):
        caller = raw_caller()
        for path in [NEXT_BATCH] * 100:
            caller.send(caller.begin(path), b"\0\0")
    started = time.monotonic()
    for step in range(20):
        run.play(step, count=1)
    run.stats()
    assert time.monotonic() - started < 5


@pytest.fixture
def short_lived_connections(monkeypatch, start_server):
    """A server that ends connections after a second, and calls half a second later."""
    short = {"grpc.max_connection_age_ms": 1000, "grpc.max_connection_age_grace_ms": 500}
    assert short.keys() < dict(app.SERVER_OPTIONS).keys()
    monkeypatch.setattr(app, "SERVER_OPTIONS", [*(dict(app.SERVER_OPTIONS) | short).items()])
    return start_server()


def test_an_answer_that_nobody_takes_ends_with_its_connection(short_lived_connections, open_run):
    run = open_run(3000)
    with closing(RawCaller(short_lived_connections.address, window=100)) as caller:
        stream = caller.call(NEXT_BATCH, run.next_request(count=2000).SerializeToString())
        frames = list(caller.frames())  # until the server closes the connection
    taken = sum(len(f.content) for f in frames if (f.kind, f.stream) == (DATA, stream))
    assert taken == 100
    assert any(frame.kind == GOAWAY for frame in frames)


def test_a_trainer_does_not_notice_that_connections_end(short_lived_connections, open_run):
    run = open_run(500)
    address = short_lived_connections.address
    deadline = time.monotonic() + 3.5
    with TrainerClient(address, run_id=run.run_id, retry_s=0) as trainer:
        for step in itertools.count():
            batch = trainer.next_batch(4, policy_step=step)
            trainer.report(batch, [[1.0] * p.attempt_count for p in batch], policy_step=step)
            if time.monotonic() > deadline:
                break
    assert run.stats().group_count == 4 * (step + 1)


def test_many_answers_that_nobody_takes_keep_nobody_waiting(raw_caller, open_run):
    run = open_run(3000)
    caller = raw_caller(window=0)
    for _ in range(100):
        caller.call(NEXT_BATCH, run.next_request(count=20).SerializeToString())
    started = time.monotonic()
    for step in range(20):
        run.play(step, count=2)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "/x",
        NEXT_BATCH + "/",
        NEXT_BATCH.lower(),
        "/curriculum_api.v1.TrainerService/",
    ],
)
def test_a_path_that_leads_nowhere_is_not_implemented(raw_caller, path):
    caller = raw_caller()
    stream = caller.begin(path)
    caller.send(stream, b"\0\0\0\0\0", end=True)
    assert caller.status(stream) in (UNIMPLEMENTED, None)


@pytest.mark.parametrize(
    "content_type", ["text/html", "application/json", "", "application/grpc-web"]
)
def test_a_body_of_another_kind_ends_no_server(raw_caller, open_run, content_type):
    caller = raw_caller()
    stream = caller.begin(NEXT_BATCH, content_type=content_type)
    caller.send(stream, b"{}", end=True)
    caller.status(stream)
    assert open_run(1).next(count=1).prompts


@pytest.mark.parametrize("flag", [b"\x01", b"\xff"])
def test_a_body_said_to_be_compressed_is_refused(raw_caller, flag, open_run):
    caller = raw_caller()
    stream = caller.begin(NEXT_BATCH)
    caller.send(stream, flag + b"\0\0\0\x02{}", end=True)
    assert caller.status(stream) != 0
    assert open_run(1).next(count=1).prompts


def test_a_bomb_that_unpacks_beyond_the_limit_is_refused(server):
    with grpc.insecure_channel(
        server.address, [("grpc.max_send_message_length", -1)], compression=grpc.Compression.Gzip
    ) as channel:
        call = channel.unary_unary(ADD_PROMPTS)
        with pytest.raises(grpc.RpcError) as refused:
            call(bytes(80 * 1024 * 1024), timeout=30)
    assert refused.value.code() in (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INVALID_ARGUMENT,
    )


@pytest.mark.parametrize(
    "metadata", [[("x", "y" * 100_000)], [(f"k{i}", "v" * 90) for i in range(500)]]
)
def test_oversized_metadata_is_refused(stubs, metadata):
    with pytest.raises(grpc.RpcError) as refused:
        stubs.operator.ListRuns(op.ListRunsRequest(), metadata=metadata, timeout=10)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    stubs.operator.ListRuns(op.ListRunsRequest())


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00" * 9, b"\0" * 99]
)
def test_other_protocols_are_hung_up_on(raw_caller, garbage, server):
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(garbage)
        while connection.recv(4096):
            pass
