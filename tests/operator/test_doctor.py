"""`curriculum doctor`: what it prints, and how it ends."""

from __future__ import annotations

import pytest

from curriculum_api.v1 import operator_service_pb2 as pb
from curriculum_api.v1 import run_pb2
from tests.operator.conftest import FakeService

LAGS = run_pb2.StoreFinding(
    severity=run_pb2.SEVERITY_WARNING,
    kind="append_only_lags",
    problem="appendfsync=everysec: the last second is lost",
    remedy="`CONFIG SET appendfsync always`",
)
STRAY = run_pb2.StoreFinding(
    severity=run_pb2.SEVERITY_ERROR,
    kind="column_orphaned",
    run_id="math",
    problem="cur:{math}:w:9:attempts is of window 9\x1b[31m",
    remedy="`UNLINK cur:{math}:w:9:attempts`",
)


class Store(FakeService):
    """Finds what it is told to, a page for each run."""

    def __init__(self, *findings):
        super().__init__()
        self.findings = findings
        self.asked = []

    def CheckStore(self, request, context):
        self.asked.append(request.run_id)
        if not request.page_token:
            found = [finding for finding in self.findings if not finding.run_id]
            return pb.CheckStoreResponse(
                findings=found, store="valkey 9.1.2", next_page_token="more"
            )
        found = [finding for finding in self.findings if finding.run_id]
        return pb.CheckStoreResponse(findings=found, store="valkey 9.1.2", run_ids=["code", "math"])


@pytest.fixture
def doctor(serve, curriculum_at):
    """Runs the command over a store with these findings."""

    def run(*findings, args=()):
        with serve(Store(*findings)) as address:
            return curriculum_at(address)("doctor", *args, COLUMNS="100")

    return run


def test_a_sound_store_is_said_to_be_sound(doctor):
    result = doctor()
    assert (result.exit_code, result.stdout) == (0, "valkey 9.1.2, 2 runs: nothing is wrong\n")


def test_warnings_do_not_fail(doctor):
    result = doctor(LAGS)
    assert result.exit_code == 0
    assert "0 errors, 1 warning; warnings do not fail" in result.stdout
    assert "warning  append_only_lags  the store" in result.stdout


def test_errors_come_first_and_fail(doctor):
    result = doctor(LAGS, STRAY)
    assert result.exit_code == 1
    assert "valkey 9.1.2, 2 runs: 1 error, 1 warning" in result.stdout
    assert result.stdout.index("column_orphaned  run math") < result.stdout.index("append_only")
    assert "→ `UNLINK cur:{math}:w:9:attempts`" in result.stdout
    assert "\x1b[31m" not in result.stdout


def test_the_json_document_holds_every_finding(serve, curriculum_at):
    with serve(Store(LAGS)) as address:
        document = curriculum_at(address).json("doctor")
    assert document["store"] == "valkey 9.1.2"
    assert document["run_ids"] == ["code", "math"]
    assert (document["error_count"], document["warning_count"]) == (0, 1)
    assert document["findings"][0]["severity"] == "SEVERITY_WARNING"
    assert document["findings"][0]["kind"] == "append_only_lags"


def test_one_run_can_be_named(serve, curriculum_at):
    store = Store()
    with serve(store) as address:
        curriculum_at(address).ok("doctor", "math")
    assert set(store.asked) == {"math"}


def test_json_fails_too_on_an_error(doctor):
    assert doctor(STRAY, args=["--json"]).exit_code == 1


def test_a_run_that_is_not_there_is_an_error_of_the_caller(server, curriculum_at):
    message = curriculum_at(server.address).error("doctor", "never-made")
    assert "there is no such run" in message


def test_a_real_store_is_looked_at(server, stubs, curriculum_at):
    stubs.create_run("looked-at")
    stubs.add_prompts("looked-at", 5)
    assert "1 run: nothing is wrong" in curriculum_at(server.address).ok("doctor", "looked-at")
