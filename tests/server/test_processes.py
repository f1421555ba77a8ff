"""The server as a process: starting, stopping, and what outlives a crash."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_server.store import embedded
from tests.server.driving import RunDriver

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def driver(connect_to):
    """Drives a run on the server of a process, made if need be."""

    def drive(process, prompt_count=0):
        stubs = connect_to(process.address)
        if prompt_count:
            stubs.create_run("r")
            stubs.add_prompts("r", prompt_count)
        return RunDriver(stubs, "r")

    return drive


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


# Starting


def test_it_starts_with_a_data_directory_alone_and_says_where_all_is(launch, data_dir, driver):
    process = launch("--data-dir", str(data_dir), "--metrics", "127.0.0.1:0").wait_until_serving()
    run = driver(process, 10)
    run.play(0)
    host, port = process.address.rsplit(":", 1)
    assert host == "127.0.0.1"
    assert int(port) > 0
    assert process.line("store ").startswith("valkey ")
    assert process.line("store ").endswith(f"embedded, data in {data_dir}")
    with urllib.request.urlopen(process.line("metrics ")) as answer:
        assert b'curriculum_attempts_total{run="r"} 32' in answer.read()
    assert data_dir.stat().st_mode & 0o777 == 0o700
    process.signal(signal.SIGTERM)
    assert process.exit_code() == 0
    assert "drain begun" in process.log
    assert "server stopped" in process.log


def test_a_data_directory_may_be_named_from_the_current_one(launch, tmp_path):
    launch("--data-dir", os.path.relpath(tmp_path / "here")).wait_until_serving()
    assert (tmp_path / "here" / "lock").exists()


def test_flags_win_over_the_environment_and_that_over_the_file(launch, tmp_path, plain_valkey):
    plain_valkey.start().close()
    path = tmp_path / "server.toml"
    path.write_text(f'redis = "{plain_valkey.url}"\nlog_level = "error"\n')
    process = launch(
        *("--config", str(path), "--log-json"),
        environment={"CURRICULUM_LISTEN": "127.0.0.1:1", "CURRICULUM_LOG_LEVEL": "info"},
    ).wait_until_serving()
    assert process.line("store ").endswith(plain_valkey.url)
    process.signal(signal.SIGINT)
    assert process.exit_code() == 0
    lines = [json.loads(line) for line in process.log.splitlines()]
    assert {"drain begun", "server stopped"} <= {line["event"].split(" limit")[0] for line in lines}
    assert all({"time", "level", "logger", "event"} <= line.keys() for line in lines)


def test_what_is_unknown_is_refused_with_what_is_allowed(launch, tmp_path):
    path = tmp_path / "server.toml"
    path.write_text("listn = 1\n")
    flag = launch("--listn", "x")
    variable = launch(environment={"CURRICULUM_LISTN": "x"})
    key = launch("--config", str(path))
    assert (flag.exit_code(), variable.exit_code(), key.exit_code()) == (2, 1, 1)
    assert "unrecognized arguments: --listn" in flag.log
    for process in (variable, key):
        assert "unknown key; must be one of listen, redis, data_dir" in process.log
        assert "Traceback" not in process.log


def test_a_port_in_use_is_named_with_its_flag(launch, store_url):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        grpc_port = launch("--redis", store_url, "--listen", address)
        metrics_port = launch("--redis", store_url, "--metrics", address)
        assert (grpc_port.exit_code(), metrics_port.exit_code()) == (1, 1)
    assert f"listen={address}: cannot listen" in grpc_port.log
    assert "--listen HOST:PORT" in grpc_port.log
    assert f"metrics={address}: cannot listen" in metrics_port.log
    assert "--metrics HOST:PORT" in metrics_port.log


def test_a_store_that_is_not_there_is_named_without_its_password(launch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    tcp = launch("--redis", f"redis://:secret@127.0.0.1:{port}/0")
    path = launch("--redis", "unix:///no/such/socket?password=secret")
    odd = launch("--redis", "redis://:secret@127.0.0.1:port")
    assert (tcp.exit_code(), path.exit_code(), odd.exit_code()) == (1, 1, 1)
    assert f"127.0.0.1:{port}" in tcp.log
    assert "/no/such/socket" in path.log
    for process in (tcp, path, odd):
        assert "Traceback" not in process.log
        assert "secret" not in process.log


def test_a_password_is_not_printed(launch, plain_valkey):
    client = plain_valkey.start()
    client.config_set("requirepass", "secret")
    client.close()
    url = f"unix://:secret@{plain_valkey.socket}"
    process = launch("--redis", url).wait_until_serving()
    assert "secret" not in process.printed + process.log
    query = launch("--redis", f"{plain_valkey.url}?password=secret").wait_until_serving()
    assert "secret" not in query.printed + query.log
    wrong = launch("--redis", f"unix://:wrong@{plain_valkey.socket}")
    assert wrong.exit_code() == 1
    assert "password" in wrong.log
    assert "wrong" not in wrong.log.replace("wrong number", "")


# Where the data is, in process, for it takes no process to find out


def test_a_data_directory_that_cannot_be_written_is_named(start_server, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(Exception, match=f"data_dir={path}: must be a writable directory"):
            start_server(data_dir=str(path))


def test_a_data_directory_in_use_is_named(start_server, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "LOCK_LIMIT_S", 0.1)
    start_server(data_dir=str(tmp_path))
    with pytest.raises(Exception, match=f"data_dir={tmp_path}: is in use by another server"):
        start_server(data_dir=str(tmp_path))


def test_a_valkey_that_does_not_start_leaves_its_log_to_read(start_server, tmp_path):
    (tmp_path / "appendonlydir").write_text("not a directory")
    with pytest.raises(Exception, match=r"valkey did not start; see .*valkey\.log"):
        start_server(data_dir=str(tmp_path))
    assert (tmp_path / "valkey.log").exists()


# Stopping


def test_a_call_in_flight_is_answered_before_the_server_stops(
    launch, plain_valkey, driver, wait_until
):
    valkey = plain_valkey.start()
    process = launch("--redis", plain_valkey.url).wait_until_serving()
    run = driver(process, 10)
    batch = run.next()
    valkey.client_pause(20_000, all=False)  # writes wait, and so does a report
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(run.report, batch, {0: [1.0] * 8})
        wait_until(lambda: any("b" in c["flags"] for c in valkey.client_list()))
        process.signal(signal.SIGTERM)
        wait_until(lambda: "drain begun" in process.log)
        assert not answer.done()
        valkey.client_unpause()
        assert answer.result(10).attempt_count == 8
    assert process.exit_code() == 0
    valkey.close()


def test_a_call_that_outlasts_the_drain_is_cut_off(launch, plain_valkey, driver, wait_until):
    valkey = plain_valkey.start()
    process = launch("--redis", plain_valkey.url, "--drain-s", "0.2").wait_until_serving()
    run = driver(process, 10)
    batch = run.next()
    valkey.client_pause(8_000, all=False)
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(run.report, batch, {0: [1.0] * 8})
        wait_until(lambda: any("b" in c["flags"] for c in valkey.client_list()))
        process.signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            answer.result(10)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert process.exit_code() == 0
    assert "Traceback" not in process.log
    valkey.client_unpause()
    valkey.close()


@linux_only
def test_control_c_reaches_the_store_through_the_server_alone(launch, data_dir, driver):
    """A terminal signals the whole process group; the store must outlive the drain."""
    process = launch("--data-dir", str(data_dir)).wait_until_serving()
    driver(process, 10).play(0)
    (valkey,) = process.children
    assert os.getpgid(valkey) != os.getpgid(process.pid)
    process.signal(signal.SIGINT, to_group=True)
    assert process.exit_code() == 0
    assert "valkey died" not in process.log
    assert not is_running(valkey)


# What outlives


def test_all_is_there_after_a_restart(launch, data_dir, driver):
    first = launch("--data-dir", str(data_dir)).wait_until_serving()
    run = driver(first, 20)
    run.play(0)
    held = run.next("held", count=3, step=1)
    before = run.seen()
    first.signal(signal.SIGTERM)
    assert first.exit_code() == 0
    again = driver(launch("--data-dir", str(data_dir)).wait_until_serving())
    assert again.seen() == before
    assert again.next("held", count=3, step=1) == held
    assert again.report(held, {0: [1.0]}).attempt_count == 1


@linux_only
def test_a_server_that_is_killed_takes_its_valkey_along_and_loses_nothing(
    launch, data_dir, driver, wait_until
):
    first = launch("--data-dir", str(data_dir)).wait_until_serving()
    run = driver(first, 20)
    batch = run.next("held", count=3)
    report = run.report_request(batch, {0: [1.0] * 8, 1: [0.0] * 2})
    run.stubs.trainer.ReportOutcomes(report)
    before = run.seen()
    (valkey,) = first.children
    first.signal(signal.SIGKILL)
    assert first.exit_code() == -signal.SIGKILL
    started = time.monotonic()
    second = launch("--data-dir", str(data_dir)).wait_until_serving()
    assert time.monotonic() - started < 10
    wait_until(lambda: not is_running(valkey))
    again = driver(second)
    assert again.seen() == before
    assert again.stubs.trainer.ReportOutcomes(report).receipt.duplicate


@linux_only
def test_a_valkey_that_is_killed_is_started_again_with_every_count(
    launch, data_dir, driver, wait_until
):
    process = launch("--data-dir", str(data_dir)).wait_until_serving()
    run = driver(process, 20)
    run.play(0)
    before = run.seen()
    (valkey,) = process.children
    os.kill(valkey, signal.SIGKILL)

    failures = set()

    def answered():
        try:
            return run.seen()
        except grpc.RpcError as error:
            failures.add(error.code())

    assert wait_until(answered, 20) == before
    assert failures <= {grpc.StatusCode.UNAVAILABLE}
    assert run.play(1).prompts
    assert f"valkey died pid={valkey}" in process.log
    process.signal(signal.SIGTERM)
    assert process.exit_code() == 0


def test_a_store_that_goes_away_is_unavailable_until_it_is_back(
    start_server, plain_valkey, wait_until, refused
):
    plain_valkey.start().close()
    server = start_server(redis=plain_valkey.url)
    server.stubs.create_run("r")
    server.stubs.add_prompts("r", 20)
    run = RunDriver(server.stubs, "r")
    run.play(0)
    before = run.seen()
    plain_valkey.stop()
    started = time.monotonic()
    answer = refused(run.stubs.trainer.NextBatch, run.next_request("next"))
    assert (answer.status, answer.error) == ("UNAVAILABLE", "StoreUnavailableError")
    assert answer.details.startswith("the store cannot be reached")
    answer = refused(run.stubs.operator.GetStats, op.GetStatsRequest(run_id="r"))
    assert answer.status == "UNAVAILABLE"
    assert time.monotonic() - started < 5
    plain_valkey.start().close()
    assert run.seen() == before
    assert len(run.next("next").prompts) == 4


def test_a_large_run_is_served_soon_after_a_restart(launch, data_dir, driver):
    first = launch("--data-dir", str(data_dir)).wait_until_serving()
    run = driver(first, 100_000)
    run.play(0, count=512)
    first.signal(signal.SIGTERM)
    assert first.exit_code() == 0
    again = driver(launch("--data-dir", str(data_dir)).wait_until_serving())
    started = time.monotonic()
    assert len(again.next("again", count=512, step=1).prompts) == 512
    assert time.monotonic() - started < 6  # most of it for the features of the prompts' texts
    assert again.stats().group_count == 512
