"""Connecting to Redis, and turning its failures into ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis import asyncio as aioredis
from redis import exceptions as rx
from redis.asyncio.connection import parse_url

from curriculum_api.errors import (
    CorruptStateError,
    InvalidRequestError,
    OverloadedError,
    StateError,
    StoreUnavailableError,
)

Redis = aioredis.Redis
Argument = bytes | str | int
"""What a script may be given."""

CONNECT_TIMEOUT_S = 2.0
MAX_CONNECTIONS = 64
REPLY_TIMEOUT_S = 10.0
"""Above any script's run time; below a trainer's patience."""
QUERY_KEYS = (
    *("client_name", "db", "max_connections", "password", "socket_connect_timeout"),
    *("socket_keepalive", "socket_timeout", "ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile"),
    *("ssl_check_hostname", "ssl_keyfile", "username"),
)
"""What the query of a URL may set. Others of redis-py's would change what replies look like, or
be found out only when the first connection is made."""
MINIMUM_VERSION = {"redis": (7, 0), "valkey": (8, 0)}
TORN_TAIL_FIXED = (9, 1, 2)
"""First Valkey whose append-only file survives being cut inside a script (valkey#4342)."""

logger = logging.getLogger(__name__)


def connect(url: str) -> Redis:
    """Open a lazy connection pool; `url` is redis://, rediss:// or unix://.

    Raises:
        InvalidRequestError: it is none; the message does not repeat it, for it may hold a password.
    """
    # Calls beyond the pool wait for a connection; redis's own default refuses them.
    return aioredis.Redis.from_pool(aioredis.BlockingConnectionPool(**url_options(url)))


def url_options(url: str) -> dict[str, Any]:
    """What a pool for this URL is made with: ours, and over them what the URL says.

    Raises:
        InvalidRequestError: it is no URL, or its query names something else than `QUERY_KEYS`.
    """
    try:
        options: Mapping[str, Any] = parse_url(url)
        query = urlsplit(url).query
        if "@" in query:  # it is the rest of a password
            raise ValueError("no URL")
    except ValueError as error:
        shown = f": {error}" if str(error).startswith("Invalid value for") else ""
        raise InvalidRequestError(
            "redis: must be a valid URL, with special characters of a password percent-encoded"
            + shown
        ) from None
    for name in parse_qs(query):
        if name not in QUERY_KEYS:
            allowed = ", ".join(QUERY_KEYS)
            raise InvalidRequestError(f"redis: ?{name}=: unknown; must be one of {allowed}")
    return {
        "max_connections": MAX_CONNECTIONS,
        "timeout": REPLY_TIMEOUT_S,
        "protocol": 2,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": REPLY_TIMEOUT_S,
        "health_check_interval": 0,
        **options,
    }


@contextmanager
def store_errors() -> Iterator[None]:
    """Translate what redis raises."""
    try:
        yield
    except (rx.ConnectionError, rx.TimeoutError, rx.BusyLoadingError, OSError) as error:
        raise StoreUnavailableError(f"the store cannot be reached: {error}") from error
    except (rx.ClusterError, rx.AskError, rx.TryAgainError) as error:  # a MovedError is an AskError
        raise StoreUnavailableError(f"the cluster is being changed: {error}") from error
    except (rx.ReadOnlyError, rx.NoScriptError) as error:
        raise StoreUnavailableError(f"the store takes no writes: {error}") from error
    except rx.OutOfMemoryError as error:
        raise OverloadedError(f"the store is out of memory: {error}") from error
    except rx.NoPermissionError as error:
        raise StateError(f"the store does not permit a command that is needed: {error}") from error
    except rx.ResponseError as error:
        if str(error).startswith(("MISCONF", "BUSY ", "NOREPLICAS")):
            raise StoreUnavailableError(f"the store takes no writes: {error}") from error
        raise CorruptStateError(f"the store refused a command: {error}") from error


@dataclass(frozen=True)
class StoreServer:
    """What answers: for people, e.g. "valkey 9.1.2", and whether it is a node of a cluster."""

    text: str
    is_cluster: bool


async def check_server(redis: Redis) -> StoreServer:
    """Verify the version. Warns where an unclean stop can lose data.

    Raises:
        StoreUnavailableError: it does not answer, or is older than the ledger needs.
    """
    try:
        with store_errors():
            server = await redis.info("server")
            persistence = await redis.info("persistence")
            cluster = await redis.info("cluster")
    except StateError as error:
        logger.warning("store not looked at, taken for one that is new and alone error=%s", error)
        return StoreServer("a store that does not say its version", is_cluster=False)
    kind = str(server.get("server_name", "redis"))
    kind = kind if kind in MINIMUM_VERSION else "redis"
    text = str(server.get(f"{kind}_version", server["redis_version"]))
    version = tuple(int(part) for part in text.split(".")[:3] if part.isdigit())
    if version < MINIMUM_VERSION[kind]:
        needed = ".".join(map(str, MINIMUM_VERSION[kind]))
        raise StoreUnavailableError(f"{kind} {text}: must be at least {needed}")
    fixed = kind == "valkey" and version >= TORN_TAIL_FIXED
    if persistence.get("aof_enabled") and not fixed:
        logger.warning(
            "%s %s can lose or double writes after an append-only file was cut short and the store "
            "restarted twice (valkey#4342); run BGREWRITEAOF after every unclean stop",
            kind,
            text,
        )
    return StoreServer(f"{kind} {text}", is_cluster=bool(cluster.get("cluster_enabled")))
