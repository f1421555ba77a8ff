"""Opening the store that a URL names: a server, one behind sentinels, or a cluster."""

from __future__ import annotations

from curriculum_server.store.cluster import ClusterRedis
from curriculum_server.store.connection import Redis, check_server, connect
from curriculum_server.store.sentinel import SCHEMES, connect_by_sentinel


async def open_store(url: str) -> tuple[Redis, str]:
    """A client, and what it speaks to, for people. A node of a cluster says itself that it is one.

    Raises:
        InvalidRequestError: the URL is none.
        StoreUnavailableError: the store does not answer, or is older than the ledger needs.
    """
    redis = connect_by_sentinel(url) if url.startswith(SCHEMES) else connect(url)
    try:
        server = await check_server(redis)
    except BaseException:
        await redis.aclose()
        raise
    if not server.is_cluster:
        return redis, server.text
    await redis.aclose()
    return ClusterRedis(url), f"{server.text} cluster"
