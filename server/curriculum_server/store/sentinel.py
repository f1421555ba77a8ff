"""A store behind sentinels: they say which of a primary and its replicas is the primary."""

from __future__ import annotations

from typing import Any

from redis import asyncio as aioredis
from redis import exceptions as rx
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from curriculum_api.errors import InvalidRequestError
from curriculum_server.store.connection import Redis, url_options

SCHEMES = ("redis+sentinel://", "rediss+sentinel://")
DEFAULT_PORT = 26379


class _Redis(aioredis.Redis):
    """A client that closes those of the sentinels with itself."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


class _Pool(SentinelConnectionPool, aioredis.BlockingConnectionPool):
    """Connections to whatever is the primary; calls beyond their number wait for one."""

    async def get_master_address(self) -> Any:
        try:
            return await super().get_master_address()  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:  # says at length what each sentinel's client is
            raise rx.ConnectionError(
                f"no sentinel that answers knows a primary of {self.service_name!r}"
            ) from error


def connect_by_sentinel(url: str) -> Redis:
    """Open a lazy pool for `redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE?KEY=VALUE`.

    Name and password are the store's; with rediss+sentinel:// the sentinels speak TLS as well.

    Raises:
        InvalidRequestError: it is no such URL; the message does not repeat it.
    """
    scheme, _, rest = url.partition("+sentinel://")
    place, _, query = rest.partition("?")
    place, _, service = place.partition("/")
    login, at, hosts = place.rpartition("@")
    try:
        sentinels = [_address(host) for host in hosts.split(",")]
    except ValueError:
        sentinels = []
    if not sentinels or not service:
        raise InvalidRequestError(f"redis: must be {scheme}+sentinel://HOST:PORT,HOST:PORT/SERVICE")
    options = url_options(f"{scheme}://{login}{at}_?{query}")
    options.pop("host")
    options["ssl"] = options.pop("connection_class", None) is not None
    # Which of the sentinels' own options there are follows from the store's.
    shared = {k: v for k, v in options.items() if k.startswith(("socket_", "ssl", "protocol"))}
    shared["retry"] = Retry(NoBackoff(), 0)  # one that is away has others beside it
    manager = Sentinel(sentinels, sentinel_kwargs=shared)  # type: ignore[no-untyped-call]
    pool = _Pool(service, manager, **options)  # type: ignore[no-untyped-call]
    return _Redis.from_pool(pool)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if ":" in text.rpartition("]")[2] else (text, "", "")
    if not host:
        raise ValueError("no host")
    return host.strip("[]"), int(port or DEFAULT_PORT)
