"""What stands round the services: health, reflection, metrics, the access log, cancelled calls."""

from __future__ import annotations

import logging
import re
import urllib.request
from contextlib import suppress

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2

SERVICES = [f"curriculum_api.v1.{name}Service" for name in ("Trainer", "Probe", "Operator")]


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_every_service_is_healthy(stubs, service):
    health = health_pb2_grpc.HealthStub(stubs.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(stubs, refused):
    health = health_pb2_grpc.HealthStub(stubs.channel)
    answer = refused(health.Check, health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert answer.status == "NOT_FOUND"


def reflect(stubs, **fields):
    reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(**fields)])
    (answer,) = reflection.ServerReflectionInfo(requests)
    return answer


def test_reflection_lists_the_services_and_describes_them(stubs):
    listed = reflect(stubs, list_services="").list_services_response.service
    assert set(SERVICES) <= {service.name for service in listed}
    for service in SERVICES:
        files = reflect(stubs, file_containing_symbol=service).file_descriptor_response
        names = {
            f"{file.package}.{described.name}"
            for file in map(FileDescriptorProto.FromString, files.file_descriptor_proto)
            for described in file.service
        }
        assert service in names


def scrape(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


def sample(text, name, **labels):
    wanted = ",".join(f'{key}="{value}"' for key, value in labels.items())
    match = re.search(rf"^{name}\{{{re.escape(wanted)}\}} (\S+)$", text, re.MULTILINE)
    return float(match[1]) if match else None


def test_the_metrics_count_by_run_and_never_name_a_prompt(start_server, open_run):
    server = start_server(metrics="127.0.0.1:0")
    run = open_run(0).through(server.stubs)
    run.add(
        prompt_pb2.Prompt(prompt_id=f"secret-prompt-{i}", domain="d", text="secret text")
        for i in range(10)
    )
    batch = run.next("b1", count=4, step=7)
    report = run.report_request(
        batch, {0: [1.0, 0.0] * 4, 1: [1.0] * 8, 2: [0.0]}, request_id="secret-report"
    )
    for _ in range(3):
        server.stubs.trainer.ReportOutcomes(report)
    with pytest.raises(grpc.RpcError):
        run.next(count=0)
    text = scrape(server.serving.metrics)
    name = run.run_id
    for metric, value in (
        ("curriculum_attempts_total", 17),
        ("curriculum_passes_total", 12),
        ("curriculum_groups_total", 2),
        ("curriculum_mixed_groups_total", 1),
        ("curriculum_duplicate_reports_total", 2),
        ("curriculum_policy_step", 7),
        ("curriculum_pool_prompts", 10),
    ):
        assert sample(text, metric, run=name) == value, metric
    assert sample(text, "curriculum_prompts_served_total", reason="explore", run=name) == 4
    assert sample(text, "curriculum_rpcs_total", code="INVALID_ARGUMENT", method="NextBatch") >= 1
    assert sample(text, "curriculum_rpc_seconds_count", method="ReportOutcomes") >= 3
    assert "secret" not in text


def test_a_batch_that_is_asked_for_again_is_served_once(start_server, open_run):
    server = start_server(metrics="127.0.0.1:0")
    run = open_run(10).through(server.stubs)
    for _ in range(3):
        run.next("batch", count=4)
    text = scrape(server.serving.metrics)
    served = sample(text, "curriculum_prompts_served_total", reason="explore", run=run.run_id)
    assert served == 4


def test_a_deleted_run_leaves_no_gauge(start_server, open_run):
    server = start_server(metrics="127.0.0.1:0")
    run = open_run(3).through(server.stubs)
    run.play(0)
    assert sample(scrape(server.serving.metrics), "curriculum_pool_prompts", run=run.run_id) == 3
    run.delete()
    text = scrape(server.serving.metrics)
    assert sample(text, "curriculum_pool_prompts", run=run.run_id) is None
    assert sample(text, "curriculum_policy_step", run=run.run_id) is None


@pytest.fixture
def access_lines(caplog):
    caplog.set_level(logging.INFO, logger="curriculum_server.access")
    return lambda: [r.getMessage() for r in caplog.records if r.name.endswith("access")]


def test_every_call_has_one_line_in_the_access_log(open_run, access_lines, refused):
    run = open_run(10)
    before = len(access_lines())
    batch = run.next()
    run.report(batch, {0: [1.0]})
    refused(run.stubs.trainer.NextBatch, run.next_request(count=0))
    run.stats()
    run.stubs.operator.ListRuns(op.ListRunsRequest())
    lines = access_lines()[before:]
    said = [re.sub(r"ms=\d+\.\d$", "ms=…", line) for line in lines]
    name = run.run_id
    assert said == [
        f"rpc served method=NextBatch run={name} code=OK ms=…",
        f"rpc served method=ReportOutcomes run={name} code=OK ms=…",
        f"rpc served method=NextBatch run={name} code=INVALID_ARGUMENT ms=…",
        f"rpc served method=GetStats run={name} code=OK ms=…",
        "rpc served method=ListRuns run= code=OK ms=…",
    ]


def test_nothing_else_that_a_caller_says_comes_into_the_log(stubs, access_lines, refused, caplog):
    caplog.set_level(logging.DEBUG)
    for run_id in ("x\nrpc served method=Forged run=r code=OK ms=0.1", "y" * 100_000):
        refused(stubs.operator.GetRun, op.GetRunRequest(run_id=run_id))
    assert access_lines()
    assert all("\n" not in line and len(line) < 300 for line in access_lines())
    assert "Forged" not in caplog.text


def test_calls_that_are_cancelled_at_any_moment_leave_the_run_whole(open_run):
    """Deadlines cut calls off in the middle of reading what is new; the next call must not care."""
    run = open_run(0)
    added = set()
    for number in range(150):
        names = {f"{number}-{i}" for i in range(20)}
        request = op.AddPromptsRequest(
            run_id=run.run_id,
            prompts=[prompt_pb2.Prompt(prompt_id=name, domain="d") for name in sorted(names)],
        )
        with suppress(grpc.RpcError):
            run.stubs.operator.AddPrompts(request, timeout=0.0002 * (number % 40))
        batch = run.next(count=3, step=number // 10)
        if batch.prompts:
            run.report(batch, {0: [1.0] * 8})
        run.stubs.operator.AddPrompts(request)
        added |= names
    assert run.get().prompt_count == len(added) == 3000
    assert run.stats().attempt_count == 8 * run.stats().group_count
