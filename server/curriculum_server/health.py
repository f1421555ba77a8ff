"""What `grpc.health.v1` says: the server as a whole lives for as long as it answers, its services
are ready while the store answers.

An orchestrator that restarts what does not live must not restart servers over a store that is away;
one that sends calls to what is ready sends them where the store can be reached.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from grpc_health.v1 import health, health_pb2

from curriculum_api.errors import CurriculumError
from curriculum_server import metrics
from curriculum_server.store.connection import Redis, store_errors
from curriculum_server.store.keys import RUN_INDEX

ASK_INTERVAL_S = 1.0
ANSWER_LIMIT_S = 2.0
UNREACHABLE_S = 5.0
"""A store without an answer for so long is away; a failover that was asked for takes less."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

logger = logging.getLogger(__name__)


class StoreHealth:
    """Sets the services' health by whether the store answers."""

    def __init__(self, servicer: health.aio.HealthServicer, redis: Redis, services: Sequence[str]):
        self._servicer = servicer
        self._redis = redis
        self._services = services
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Say that the services are ready, and follow the store in the background."""
        await self._say(reachable=True)
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        self._stopping = True  # redis-py now and then swallows a cancellation
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        answered_s, reachable = loop.time(), True
        while not self._stopping:
            await asyncio.sleep(ASK_INTERVAL_S)
            failure = await self._ask()
            if failure is None:
                answered_s = loop.time()
            is_reachable = loop.time() - answered_s < UNREACHABLE_S
            if is_reachable != reachable:
                reachable = is_reachable
                logger.warning("store %s", "back" if reachable else f"away error={failure}")
                await self._say(reachable=reachable)

    async def _ask(self) -> str | None:
        """Why the store does not answer; None when it does."""
        try:
            with store_errors():
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    await self._redis.exists(RUN_INDEX)
        except CurriculumError as error:
            return str(error)
        return None

    async def _say(self, *, reachable: bool) -> None:
        metrics.STORE_REACHABLE.set(reachable)
        for service in self._services:
            await self._servicer.set(service, SERVING if reachable else NOT_SERVING)
