"""Connecting to Redis, and turning its failures into ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from redis import asyncio as aioredis
from redis import exceptions as rx

from curriculum_api.errors import (
    CorruptStateError,
    InvalidRequestError,
    OverloadedError,
    StoreUnavailableError,
)

Redis = aioredis.Redis
Argument = bytes | str | int
"""What a script may be given."""

CONNECT_TIMEOUT_S = 2.0
MAX_CONNECTIONS = 64
REPLY_TIMEOUT_S = 10.0
"""Above any script's run time; below a trainer's patience."""
MINIMUM_VERSION = {"redis": (7, 0), "valkey": (8, 0)}
TORN_TAIL_FIXED = (9, 1, 2)
"""First Valkey whose append-only file survives being cut inside a script (valkey#4342)."""

logger = logging.getLogger(__name__)


def connect(url: str) -> Redis:
    """Open a lazy connection pool; `url` is redis://, rediss:// or unix://.

    Raises:
        InvalidRequestError: it is none; the message does not repeat it, for it may hold a password.
    """
    try:
        # Calls beyond the pool wait for a connection; redis's own default refuses them.
        pool = aioredis.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=REPLY_TIMEOUT_S,
            protocol=2,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=REPLY_TIMEOUT_S,
            health_check_interval=0,
        )
        return aioredis.Redis.from_pool(pool)
    except ValueError:
        raise InvalidRequestError(
            "redis: must be a valid URL, with special characters of a password percent-encoded"
        ) from None


@contextmanager
def store_errors() -> Iterator[None]:
    """Translate what redis raises."""
    try:
        yield
    except (rx.ConnectionError, rx.TimeoutError, rx.BusyLoadingError, OSError) as error:
        raise StoreUnavailableError(f"the store cannot be reached: {error}") from error
    except rx.ReadOnlyError as error:
        raise StoreUnavailableError(f"the store takes no writes: {error}") from error
    except rx.OutOfMemoryError as error:
        raise OverloadedError(f"the store is out of memory: {error}") from error
    except rx.ResponseError as error:
        if str(error).startswith(("MISCONF", "BUSY ", "NOREPLICAS", "MASTERDOWN", "TRYAGAIN")):
            raise StoreUnavailableError(f"the store takes no writes: {error}") from error
        raise CorruptStateError(f"the store refused a command: {error}") from error


async def check_server(redis: Redis) -> str:
    """Verify the version; return e.g. "valkey 9.1.2". Warns where an unclean stop can lose data.

    Raises:
        StoreUnavailableError: it does not answer, or is older than the ledger needs.
    """
    with store_errors():
        server = await redis.info("server")
        persistence = await redis.info("persistence")
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
    return f"{kind} {text}"
