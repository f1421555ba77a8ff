"""Liveness is the server's own; readiness follows the store."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_server import health
from tests.server.clusters import free_port

TRAINER = "curriculum_api.v1.TrainerService"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(health, "ASK_INTERVAL_S", 0.05)
    monkeypatch.setattr(health, "ANSWER_LIMIT_S", 0.3)
    monkeypatch.setattr(health, "UNREACHABLE_S", 0.6)


@pytest.fixture
def server(impatient, start_server, plain_valkey):
    plain_valkey.start().close()
    return start_server(redis=plain_valkey.url, metrics="127.0.0.1:0")


@pytest.fixture
def status_of(server):
    stub = health_pb2_grpc.HealthStub(server.stubs.channel)

    def check(service):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    return check


def reachable(server):
    with urllib.request.urlopen(server.serving.metrics) as answer:
        (line,) = (
            line
            for line in answer.read().decode().splitlines()
            if line.startswith("curriculum_store_reachable ")
        )
    return float(line.split()[1])


def test_services_are_ready_while_the_store_answers(
    server, status_of, plain_valkey, wait_until, caplog
):
    assert (status_of(""), status_of(TRAINER), reachable(server)) == ("SERVING", "SERVING", 1)
    plain_valkey.stop()
    wait_until(lambda: status_of(TRAINER) == "NOT_SERVING")
    assert (status_of(""), reachable(server)) == ("SERVING", 0)
    plain_valkey.start().close()
    wait_until(lambda: status_of(TRAINER) == "SERVING")
    assert (status_of(""), reachable(server)) == ("SERVING", 1)
    said = [r.getMessage() for r in caplog.records if r.name == health.__name__]
    assert said[0].startswith("store away error=the store cannot be reached")
    assert said[1:] == ["store back"]


def test_a_store_that_is_silent_is_as_good_as_away(server, status_of, plain_valkey, wait_until):
    """No connection is refused, and no answer comes."""
    with redis.Redis.from_url(plain_valkey.url) as client:
        client.client_pause(3000)
    wait_until(lambda: status_of(TRAINER) == "NOT_SERVING")
    assert status_of("") == "SERVING"
    wait_until(lambda: status_of(TRAINER) == "SERVING")


def test_a_store_that_is_away_for_a_moment_is_forgiven(
    server, status_of, plain_valkey, monkeypatch
):
    monkeypatch.setattr(health, "UNREACHABLE_S", 30.0)
    plain_valkey.stop()
    time.sleep(3 * health.ASK_INTERVAL_S)
    plain_valkey.start().close()
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        assert status_of(TRAINER) == "SERVING"
    assert reachable(server) == 1


def test_a_server_that_drains_is_neither_alive_nor_ready(server, status_of):
    server.thread.call(server.app._health.enter_graceful_shutdown())
    assert (status_of(""), status_of(TRAINER)) == ("NOT_SERVING", "NOT_SERVING")


def test_health_is_served_in_clear_besides_where_a_port_is_given(start_server, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"t" = "operator"')
    tls = Path(__file__).parent / "tls"
    server = start_server(
        health=address,
        tls_server_cert=str(tls / "cert.pem"),
        tls_server_key=str(tls / "key.pem"),
        tokens=str(tokens),
    )
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", TRAINER):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            OperatorServiceStub(channel).ListRuns(op.ListRunsRequest(), timeout=5)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(Exception, match=f"health={address}: cannot listen; .*--health HOST:PORT"):
        start_server(health=address)
    assert server.serving.address != address
