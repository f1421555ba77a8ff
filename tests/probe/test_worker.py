"""Leases, steps, rounds, stopping, and what goes wrong."""

from __future__ import annotations

import threading
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from curriculum_api.v1 import run_pb2
from curriculum_api.v1 import trainer_service_pb2 as trainer_pb
from curriculum_api.v1.operator_service_pb2_grpc import (
    OperatorServiceServicer,
    add_OperatorServiceServicer_to_server,
)
from curriculum_api.v1.probe_service_pb2_grpc import (
    ProbeServiceServicer,
    add_ProbeServiceServicer_to_server,
)
from curriculum_probe import cli, reports, worker

TLS = Path(__file__).parents[1] / "server" / "tls"
CERT, KEY = str(TLS / "cert.pem"), str(TLS / "key.pem")


def publish(stubs, run_id, step):
    policy = run_pb2.Policy(policy_step=step, uri="file:///weights")
    stubs.trainer.PublishPolicy(trainer_pb.PublishPolicyRequest(run_id=run_id, policy=policy))


def test_rounds_follow_each_other_until_they_are_through(probe, pool, endpoint) -> None:
    texts = pool.add_rates(*[0.5] * 6)
    assert probe(rounds=3, prompts=2) == 0
    assert len(endpoint.requests) == 6
    counts = pool.attempts()
    assert sum(counts.values()) == len(texts) * 8
    # Those that were looked at tell less by another look, which is no promise for each round.
    assert sum(count > 0 for count in counts.values()) >= 4
    assert pool.leased() == set()


def test_once_is_one_round(command, pool, endpoint) -> None:
    pool.add_rates(0.5)
    assert cli.main([*command(rounds=None), "--once"]) == 0
    assert len(endpoint.requests) == 1


def test_attempts_count_for_the_step_that_was_told(probe, pool, stubs) -> None:
    [text] = pool.add_rates(0.5)
    publish(stubs, pool.run_id, 20)
    assert probe(policy_step=7) == 0
    [window] = pool.prompt(text).history
    assert window.first_policy_step <= 7 <= window.last_policy_step < 20


def test_attempts_count_for_the_published_step(probe, pool, stubs) -> None:
    """Also when the step moved so far that the server would refuse a lease for step 0."""
    [text] = pool.add_rates(0.5)
    for step in range(0, 101, 5):
        assert probe(policy_step=step) == 0
    before = sum(window.attempt_count for window in pool.prompt(text).history)
    publish(stubs, pool.run_id, 103)
    assert probe(policy_step=None) == 0
    last = pool.prompt(text).history[-1]
    assert last.first_policy_step <= 103 <= last.last_policy_step
    assert sum(window.attempt_count for window in pool.prompt(text).history) == before + 8


def test_a_step_published_between_rounds_is_taken_up(probe, pool, stubs, endpoint, caplog) -> None:
    pool.add_rates(0.5)
    publish(stubs, pool.run_id, 1)
    endpoint.on_request = lambda number: publish(stubs, pool.run_id, number + 1)
    assert probe(policy_step=None, rounds=2) == 0
    assert "policy_step=1 prompts=1" in caplog.text
    assert "policy_step=2 prompts=1" in caplog.text


def test_without_any_step_nothing_is_guessed(probe, pool, endpoint, error_line) -> None:
    pool.add_rates(0.5)
    assert probe(policy_step=None) == 1
    assert "has no published policy; name the step" in error_line()
    assert endpoint.requests == []
    assert pool.leased() == set()


def test_leases_are_kept_while_the_engine_works(probe, pool_of, endpoint, wait_until) -> None:
    pool = pool_of(lease_ttl=Duration(seconds=2))
    [text] = pool.add_rates(0.5)

    def expiry():
        return pool.prompt(text).state.lease_expire_time.seconds

    def outlive_the_first_lease(_number):
        first = expiry()
        wait_until(lambda: expiry() > first + 1)

    endpoint.on_request = outlive_the_first_lease
    assert probe(run=pool.run_id) == 0
    assert pool.attempts() == {text: 8}


def test_a_dry_pool_is_waited_for_with_growing_pauses(
    probe, pool, stubs, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(worker, "FIRST_PAUSE_S", 0.01)
    pool.add_rates(0.5)
    stubs.trainer.NextBatch(
        trainer_pb.NextBatchRequest(run_id=pool.run_id, request_id="b", prompt_count=1)
    )
    assert probe(rounds=4) == 0
    assert caplog.text.count("because=0 of 32: 1 prompts are leased") == 4
    assert [r.getMessage() for r in caplog.records if "pausing" in r.message] == [
        "pausing pause_s=0.01",
        "pausing pause_s=0.02",
        "pausing pause_s=0.04",
    ]


def roll_back(stubs, run_id, number):
    request = trainer_pb.RollbackRequest(
        run_id=run_id, request_id=f"r{number}", checkpoint_name="start"
    )
    stubs.trainer.Rollback(request)


def test_attempts_from_before_a_rollback_are_dropped(probe, pool, stubs, endpoint, caplog) -> None:
    [text] = pool.add_rates(0.5)
    checkpoint = run_pb2.Checkpoint(name="start")
    stubs.trainer.Checkpoint(
        trainer_pb.CheckpointRequest(run_id=pool.run_id, checkpoint=checkpoint)
    )
    endpoint.on_request = lambda n: roll_back(stubs, pool.run_id, n) if n == 1 else None
    assert probe(rounds=2, policy_step=1) == 0
    assert pool.attempts() == {text: 8}
    assert caplog.text.count("report refused: timeline=") == 1


def test_a_rollback_that_drops_many_rounds_is_one_refusal(
    probe, pool, stubs, endpoint, caplog
) -> None:
    texts = pool.add_rates(*[0.5] * 6)
    checkpoint = run_pb2.Checkpoint(name="start")
    stubs.trainer.Checkpoint(
        trainer_pb.CheckpointRequest(run_id=pool.run_id, checkpoint=checkpoint)
    )
    all_asked = threading.Barrier(len(texts))

    def roll_back_under_all(number):
        if number <= len(texts) and all_asked.wait(30) == 0:
            roll_back(stubs, pool.run_id, number)
            rolled_back.set()
        assert rolled_back.wait(30)

    rolled_back = threading.Event()
    endpoint.on_request = roll_back_under_all
    assert probe(prompts=1, rounds=12, policy_step=1) == 0
    assert caplog.text.count("report refused: timeline=") == 6
    assert sum(pool.attempts().values()) == 6 * 8
    assert pool.leased() == set()


def test_reports_that_are_always_refused_end_the_worker(
    probe, pool, stubs, endpoint, error_line, monkeypatch
) -> None:
    monkeypatch.setattr(worker, "FIRST_PAUSE_S", 0.01)
    pool.add_rates(0.5)
    checkpoint = run_pb2.Checkpoint(name="start")
    stubs.trainer.Checkpoint(
        trainer_pb.CheckpointRequest(run_id=pool.run_id, checkpoint=checkpoint)
    )
    endpoint.on_request = lambda number: roll_back(stubs, pool.run_id, number)
    assert probe(rounds=None, policy_step=1) == 1
    assert error_line().startswith("error: timeline=")
    assert len(endpoint.requests) == reports.MAX_REFUSED_REPORTS


class FlakyServer(ProbeServiceServicer, OperatorServiceServicer):
    """Passes calls on to the real server, and loses the first answers of each."""

    def __init__(self, stubs, lost_count):
        self._stubs, self._lost_count = stubs, lost_count
        self.requests = {"LeaseProbes": [], "ReportProbes": [], "GetRun": []}
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        add_ProbeServiceServicer_to_server(self, self._server)
        add_OperatorServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def LeaseProbes(self, request, context):
        return self._pass_on("LeaseProbes", self._stubs.probe.LeaseProbes, request, context)

    def ReportProbes(self, request, context):
        return self._pass_on("ReportProbes", self._stubs.probe.ReportProbes, request, context)

    def GetRun(self, request, context):
        return self._pass_on("GetRun", self._stubs.operator.GetRun, request, context)

    def stop(self):
        self._server.stop(None).wait()

    def _pass_on(self, name, rpc, request, context):
        response = rpc(request)
        self.requests[name].append(request)
        if len(self.requests[name]) <= self._lost_count:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return response


def test_calls_whose_answer_was_lost_are_repeated_and_count_once(
    probe, pool, stubs, caplog
) -> None:
    texts = pool.add_rates(0.5, 0.5)
    flaky = FlakyServer(stubs, lost_count=2)
    try:
        assert probe(server=flaky.address) == 0
    finally:
        flaky.stop()
    assert pool.attempts() == dict.fromkeys(texts, 8)
    for name in ("LeaseProbes", "ReportProbes"):
        requests = flaky.requests[name]
        assert len(requests) == 3
        assert all(request == requests[0] for request in requests)
    assert caplog.text.count("server went away") == caplog.text.count("server came back") == 3


def test_a_probers_token_is_enough(probe, pool, stubs, start_server, tmp_path, monkeypatch) -> None:
    publish(stubs, pool.run_id, 5)
    texts = pool.add_rates(0.5, 0.5)
    pool.add("1.0", {}, "skipped")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"secret" = "prober"')
    guarded = start_server(tokens=str(tokens))
    assert probe(server=guarded.address, token="unknown") == 1
    monkeypatch.setenv("CURRICULUM_TOKEN", "secret")
    assert probe(server=guarded.address, policy_step=None) == 0
    assert pool.attempts() == dict.fromkeys(texts, 8) | {"skipped": 0}
    assert pool.leased() == set()


def test_a_server_that_demands_a_certificate_is_shown_one(
    probe, pool, start_server, error_line
) -> None:
    texts = pool.add_rates(0.5)
    guarded = start_server(tls_server_cert=CERT, tls_server_key=KEY, tls_client_ca=CERT)
    told = {"server": guarded.address, "tls_ca": CERT}
    assert probe(**told, patience=0) == 1
    assert "is unavailable" in error_line()
    assert probe(**told, tls_cert=CERT, tls_key=KEY) == 0
    assert pool.attempts() == dict.fromkeys(texts, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "nowhere"}, "run_id='nowhere'"),
        ({"model": "other"}, "/v1/completions: 404: The model `other` does not exist."),
        ({"endpoint": "http://127.0.0.1:1/v1", "patience": 0}, "Connection refused"),
        ({"endpoint": "localhost:8000"}, "endpoint='localhost:8000': must be a URL such as"),
        ({"server": "127.0.0.1:1", "patience": 0}, "127.0.0.1:1 is unavailable"),
        ({"engine": "steam"}, "engine='steam': must be one of openai"),
        ({"tls_ca": "/nowhere/ca.pem"}, "tls_ca=/nowhere/ca.pem: No such file"),
        ({"tls_cert": CERT}, "a certificate and its key go together"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_in_one_line(probe, pool, error_line, changes, message) -> None:
    pool.add_rates(0.5)
    assert probe(**changes) == 1
    line = error_line()
    assert line.startswith("error: ")
    assert message in line
    assert pool.leased() == set()


def test_a_run_whose_rewards_have_another_scale_is_refused(probe, pool_of, error_line) -> None:
    pool = pool_of(reward_max=10.0)
    assert probe(run=pool.run_id) == 1
    assert "verifiers score in [0, 1], but rewards are in [0, 10] and pass at 10" in error_line()


def test_an_impossible_option_is_refused_before_anything_is_asked(command, capsys) -> None:
    for option in ({"prompts": 4097}, {"attempts": 0}, {"temperature": "nan"}, {"rounds": "-1"}):
        with pytest.raises(SystemExit, match="2"):
            cli.main(command(**option))
        assert "must be" in capsys.readouterr().err
