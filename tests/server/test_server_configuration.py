"""The server's own configuration: where values come from, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from curriculum_api.errors import InvalidRequestError
from curriculum_server.config import ServerConfig, read_config


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "server.toml"
        path.write_text(text)
        return str(path)

    return write


def test_the_defaults_listen_on_loopback_with_an_embedded_store(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    config = read_config([], {})
    assert (config.listen, config.redis) == ("127.0.0.1:50051", "")
    assert config.data_dir == str(tmp_path / "edge-curriculum")


def test_flags_win_over_the_environment_and_that_over_the_file(toml):
    path = toml('listen = "127.0.0.1:1"\nmetrics = "127.0.0.1:1"\nredis = "redis://file"\n')
    environment = {"CURRICULUM_LISTEN": "127.0.0.1:2", "CURRICULUM_METRICS": "127.0.0.1:2"}
    config = read_config(["--config", path, "--listen", "127.0.0.1:3"], environment)
    assert (config.listen, config.metrics, config.redis) == (
        "127.0.0.1:3", "127.0.0.1:2", "redis://file")  # fmt: skip
    assert read_config([], environment | {"CURRICULUM_CONFIG": path}).redis == "redis://file"


def test_every_key_may_come_from_every_source(toml, tmp_path):
    values = {
        "listen": "[::1]:0",
        "redis": "redis://h",
        "data_dir": str(tmp_path),
        "appendfsync": "always",
        "metrics": "off",
        "health": "127.0.0.1:0",
        "log_level": "debug",
        "log_json": True,
        "drain_s": 2.5,
    }
    lines = [
        f"{name} = {str(value).lower() if not isinstance(value, str) else repr(value)}"
        for name, value in values.items()
    ]
    flags = [
        part
        for name, value in values.items()
        for part in [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    ]
    environment = {f"CURRICULUM_{name.upper()}": str(value) for name, value in values.items()}
    wanted = ServerConfig(**values)
    assert read_config(flags, {}) == wanted
    assert read_config([], environment) == wanted
    assert read_config(["--config", toml("\n".join(lines))], {}) == wanted


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CURRICULUM_LISTN", "x", "CURRICULUM_LISTN: unknown key; must be one of listen, redis"),
        ("CURRICULUM_LISTEN", "localhost", "listen=localhost: must be HOST:PORT"),
        ("CURRICULUM_LISTEN", "h:65536", "listen=h:65536: must be HOST:PORT with a port in [0,"),
        ("CURRICULUM_LISTEN", ":1", "listen=:1: must be HOST:PORT"),
        ("CURRICULUM_METRICS", "on", "metrics=on: must be HOST:PORT"),
        ("CURRICULUM_HEALTH", "on", "health=on: must be HOST:PORT"),
        ("CURRICULUM_REDIS", "localhost:6379", "must be a redis://, rediss:// or unix:// URL"),
        ("CURRICULUM_APPENDFSYNC", "no", "appendfsync=no: must be one of always, everysec"),
        ("CURRICULUM_LOG_LEVEL", "loud", "log_level=loud: must be one of debug, info, warning"),
        ("CURRICULUM_LOG_JSON", "yes", "log_json=yes: must be true or false"),
        ("CURRICULUM_DRAIN_S", "soon", "drain_s=soon: must be a number of seconds"),
        ("CURRICULUM_DRAIN_S", "-1", "drain_s=-1.0: must be in [0, 3600]"),
        ("CURRICULUM_DRAIN_S", "nan", "drain_s=nan: must be in [0, 3600]"),
    ],
)
def test_a_bad_variable_is_refused_by_name(variable, value, said):
    with pytest.raises(InvalidRequestError) as caught:
        read_config([], {variable: value})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listn = 'x'", "server.toml: listn: unknown key; must be one of listen, redis"),
        ("listen = 5", "listen=5: must be a string"),
        ("drain_s = 'soon'", "drain_s=soon: must be a number of seconds"),
        ("[listen]\na = 1", "must be a string"),
        ("listen = ", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_by_key(toml, text, said):
    with pytest.raises(InvalidRequestError) as caught:
        read_config(["--config", toml(text)], {})
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"config=.*none\.toml: cannot be read"):
        read_config(["--config", str(tmp_path / "none.toml")], {})
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_config([], {"CURRICULUM_CONFIG": str(tmp_path)})


def test_an_unknown_flag_is_refused_and_the_flags_are_shown(capsys):
    with pytest.raises(SystemExit) as caught:
        read_config(["--listn", "x"], {})
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "unrecognized arguments: --listn" in shown
    assert "--listen HOST:PORT" in shown


def test_a_password_is_not_repeated_when_a_url_is_refused():
    for url in ("http://:secret@host", "redis:/user:secret@host", "tcp://h?password=secret"):
        with pytest.raises(InvalidRequestError) as caught:
            read_config([], {"CURRICULUM_REDIS": url})
        assert "secret" not in str(caught.value)


def test_variables_of_the_clients_are_left_alone():
    environment = {"CURRICULUM_SERVER": "h:1", "CURRICULUM_TOKEN": "t", "OTHER": "x"}
    assert read_config(["--data-dir", "/d"], environment) == ServerConfig(data_dir="/d")


def test_matrices_are_multiplied_on_one_thread():
    # BLAS reads it when numpy is imported, which is too late once the server's modules are there.
    program = (
        "import os, sys\n"
        "import curriculum_server.main as start\n"
        "start.run = lambda *_, **__: print(os.environ['OPENBLAS_NUM_THREADS'])\n"
        "assert 'numpy' not in sys.modules\n"
        "start.main()\n"
    )
    inherited = {name: v for name, v in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "-c", program]
    for given, used in ((None, "1"), ("3", "3")):
        environment = inherited | ({} if given is None else {"OPENBLAS_NUM_THREADS": given})
        assert subprocess.check_output(command, env=environment, text=True).strip() == used
