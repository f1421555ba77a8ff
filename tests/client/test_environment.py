"""Clients made from variables, for code that a framework calls."""

from __future__ import annotations

import os

import pytest

from curriculum_client import AsyncTrainerClient, InvalidRequestError, TrainerClient
from curriculum_client.adapters import _process
from curriculum_client.testing import FakeCurriculum


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Sets variables, of which there are none yet."""
    for name in [name for name in os.environ if name.startswith("CURRICULUM_")]:
        monkeypatch.delenv(name)

    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"CURRICULUM_{name}", str(value))

    _process.client.cache_clear()
    yield set_variables
    _process.client.cache_clear()


@pytest.mark.parametrize("kind", [TrainerClient, AsyncTrainerClient])
def test_the_run_is_enough(environment, kind):
    environment(RUN="math")
    settings = kind.from_environment()._core.settings
    assert (settings.run_id, settings.target) == ("math", "localhost:50051")
    assert (settings.consumer, settings.token, settings.tls) == ("default", None, None)


@pytest.mark.parametrize("variables", [{}, {"RUN": ""}, {"SERVER": "here:1"}])
def test_without_a_run_it_says_what_to_set(environment, variables):
    environment(**variables)
    with pytest.raises(InvalidRequestError, match="CURRICULUM_RUN='': must name the run"):
        TrainerClient.from_environment()


def test_every_variable_is_read(environment, tmp_path):
    files = {}
    for name in ("CA", "CERT", "KEY"):
        files[f"TLS_{name}"] = tmp_path / name
        (tmp_path / name).write_text(f"the {name}")
    environment(RUN="math", SERVER="there:7", CONSUMER="job-3", TOKEN="s3cret", **files)
    settings = TrainerClient.from_environment()._core.settings
    assert (settings.target, settings.consumer, settings.token) == ("there:7", "job-3", "s3cret")
    assert settings.tls.root_certificates == b"the CA"
    assert settings.tls.certificate_chain == b"the CERT"
    assert settings.tls.private_key == b"the KEY"


def test_a_file_that_cannot_be_read_is_named(environment, tmp_path):
    environment(RUN="math", TLS_CA=tmp_path / "nowhere.pem")
    with pytest.raises(InvalidRequestError, match=r"tls_ca.*nowhere\.pem"):
        TrainerClient.from_environment()


def test_options_come_before_variables(environment):
    environment(RUN="math", CONSUMER="job-3")
    client = TrainerClient.from_environment(consumer="mine", retry_s=1.0, target="there:7")
    settings = client._core.settings
    assert (settings.run_id, settings.consumer, settings.target) == ("math", "mine", "there:7")
    assert settings.retry_s == 1.0


def test_unknown_options_are_refused(environment):
    environment(RUN="math")
    with pytest.raises(TypeError, match="retries"):
        TrainerClient.from_environment(retries=3)


def test_reports_are_told_apart_unless_a_reporter_is_named(environment):
    with FakeCurriculum(["1 + 1"], group_size=8) as fake:
        environment(RUN=fake.run_id, SERVER=fake.target)
        make = TrainerClient.from_environment
        with (
            make() as one,
            make() as other,
            make(reporter="r") as third,
            make(reporter="r") as fourth,
        ):
            [served] = one.next_batch(1, policy_step=0)
            receipts = [
                client.report_attempts([served.lease], [1.0], policy_step=0)
                for client in (one, other, third, fourth)
            ]
        assert [receipt.duplicate for receipt in receipts] == [False, False, False, True]
        assert fake.attempts == {"p0": 3}


def test_a_process_has_one_client(environment):
    environment(RUN="math")
    assert _process.client() is _process.client()


def test_a_process_without_a_run_is_told_so_each_time(environment):
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="CURRICULUM_RUN"):
            _process.client()
    environment(RUN="math")
    assert _process.client()._core.settings.run_id == "math"
