"""The server's own configuration: flags over environment over TOML over defaults."""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import DEFAULT_PORT

ENVIRONMENT_PREFIX = "CURRICULUM_"
FOREIGN_VARIABLES = frozenset(
    f"CURRICULUM_{name}"
    for name in ("SERVER", "RUN", "CONSUMER", "TOKEN", "TLS_CA", "TLS_CERT", "TLS_KEY", "CONFIG")
)
"""Read by the clients, or to find the TOML file."""
LOG_LEVELS = ("debug", "info", "warning", "error")
APPENDFSYNC = ("always", "everysec")
STORE_SCHEMES = (
    *("redis://", "rediss://", "unix://"),
    *("redis+sentinel://", "rediss+sentinel://"),
)


def default_data_dir() -> str:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return str(Path(base) / "edge-curriculum")


@dataclass(frozen=True)
class ServerConfig:
    """How one server runs.

    Attributes:
        listen: where gRPC listens; port 0 takes a free one.
        redis: URL of a Redis or Valkey, of any node of a cluster, or of sentinels and the service
            they watch; empty starts the embedded Valkey.
        data_dir: where the embedded Valkey keeps its files.
        appendfsync: when the embedded Valkey's log reaches the disk. "everysec" can lose the last
            second if the machine dies; "always" loses nothing and about halves the rate.
        metrics: where Prometheus reads; "off" for nowhere.
        health: where `grpc.health.v1` is served besides, in clear and to everybody, for probes that
            speak no TLS; "off" for nowhere.
        tls_server_cert: PEM file of the server's certificate.
        tls_server_key: PEM file of its key.
        tls_client_ca: PEM file of the CA whose certificates callers must show.
        tokens: TOML file of bearer tokens and their roles: trainer, prober, operator.
        allow_insecure: listen beyond loopback also without TLS and tokens.
        log_level: of this server's own lines.
        log_json: one JSON object per line instead of text.
        drain_s: how long calls in flight may go on after SIGTERM.
    """

    listen: str = f"127.0.0.1:{DEFAULT_PORT}"
    redis: str = ""
    data_dir: str = ""
    appendfsync: str = "everysec"
    metrics: str = "127.0.0.1:9464"
    health: str = "off"
    tls_server_cert: str = ""
    tls_server_key: str = ""
    tls_client_ca: str = ""
    tokens: str = ""
    allow_insecure: bool = False
    log_level: str = "info"
    log_json: bool = False
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        split_address("listen", self.listen)
        for name in ("metrics", "health"):
            if (address := getattr(self, name)) != "off":
                split_address(name, address)
        if self.redis and not self.redis.startswith(STORE_SCHEMES):
            shown = without_secrets(self.redis)
            raise _refused(
                "redis", shown, "a redis://, rediss:// or unix:// URL, or redis+sentinel://"
            )
        if self.appendfsync not in APPENDFSYNC:
            raise _refused("appendfsync", self.appendfsync, f"one of {', '.join(APPENDFSYNC)}")
        if self.log_level not in LOG_LEVELS:
            raise _refused("log_level", self.log_level, f"one of {', '.join(LOG_LEVELS)}")
        if not 0 <= self.drain_s <= 3600:
            raise _refused("drain_s", self.drain_s, "in [0, 3600]")


def split_address(name: str, address: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise _refused(name, address, "HOST:PORT with a port in [0, 65535]")
    return host.strip("[]"), int(port)


def without_secrets(url: str) -> str:
    """The URL without user, password and query."""
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> ServerConfig:
    """The configuration that the flags, the environment and the TOML file add up to.

    Raises:
        InvalidRequestError: an unknown key, or a value that is not allowed.
    """
    flags = vars(_parser().parse_args(arguments))
    path = flags.pop("config") or environment.get("CURRICULUM_CONFIG")
    values = _from_toml(path) if path else {}
    values |= _from_environment(environment)
    values |= {name: value for name, value in flags.items() if value is not None}
    typed = {name: _typed(name, value) for name, value in values.items()}
    if not typed.get("data_dir"):
        typed["data_dir"] = default_data_dir()
    return ServerConfig(**typed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curriculum-server",
        description="Serves RLVR trainers the prompts at the edge of their model's competence.",
        epilog="Each flag may also be set as CURRICULUM_<FLAG> or as a key of the TOML file.",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with the keys below")
    helps = {
        "listen": ("HOST:PORT", "where gRPC listens; port 0 takes a free one"),
        "redis": (
            "URL",
            "Redis, Valkey or cluster to use; without it an embedded Valkey is started",
        ),
        "data_dir": ("DIR", "where the embedded Valkey keeps its files"),
        "appendfsync": ("|".join(APPENDFSYNC), "when the embedded Valkey's log reaches the disk"),
        "metrics": ("HOST:PORT", 'where Prometheus reads, or "off"'),
        "health": ("HOST:PORT", 'where health is served in clear besides, or "off"'),
        "tls_server_cert": ("FILE", "the server's certificate, PEM"),
        "tls_server_key": ("FILE", "its key, PEM"),
        "tls_client_ca": ("FILE", "ask callers for a certificate of this CA, PEM"),
        "tokens": ("FILE", 'TOML file of lines "token" = "trainer|prober|operator"'),
        "log_level": ("|".join(LOG_LEVELS), "least severe lines to log"),
        "drain_s": ("SECONDS", "how long calls in flight may go on after SIGTERM"),
    }
    defaults = {field.name: field.default for field in fields(ServerConfig)}
    defaults["data_dir"] = default_data_dir()
    for name, (metavar, text) in helps.items():
        shown = f"{text} (default: {defaults[name] or 'none'})"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=shown)
    for flag, text in (
        ("--log-json", "log one JSON object per line"),
        ("--allow-insecure", "listen beyond loopback also without TLS and tokens"),
    ):
        parser.add_argument(flag, action="store_true", default=None, help=text)
    return parser


def _from_toml(path: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequestError(f"config={path}: cannot be read: {error}") from error
    for name in values:
        _check_known(f"{path}: {name}", name)
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable, value in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in FOREIGN_VARIABLES:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            _check_known(variable, name)
            values[name] = value
    return values


def _check_known(shown: str, name: str) -> None:
    known = [field.name for field in fields(ServerConfig)]
    if name not in known:
        raise InvalidRequestError(f"{shown}: unknown key; must be one of {', '.join(known)}")


def _typed(name: str, value: Any) -> Any:
    if name in ("log_json", "allow_insecure"):
        if str(value).lower() not in ("true", "false", "1", "0"):
            raise _refused(name, value, "true or false")
        return str(value).lower() in ("true", "1")
    if name == "drain_s":
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise _refused(name, value, "a number of seconds") from error
    if not isinstance(value, str):
        raise _refused(name, value, "a string")
    return value


def _refused(name: str, value: object, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name}={value}: must be {allowed}")
