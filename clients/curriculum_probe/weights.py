"""Which policy step the engine samples from."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from curriculum_api.v1 import run_pb2
from curriculum_probe import metrics
from curriculum_probe.engines import CheckpointError, Engine

FIRST_RETRY_S = 5.0
LAST_RETRY_S = 300.0
"""Between tries at one checkpoint that cannot be loaded: each makes the engine run empty."""
LOOK_S = 0.5
"""Between looks whether the worker is stopped while weights load, which takes minutes."""

Drained = Callable[[], Awaitable[bool]]

logger = logging.getLogger(__name__)


class Weights:
    """Follows what the trainer publishes, unless a step was told: that is then the engine's."""

    def __init__(self, engine: Engine, told_step: int | None) -> None:
        self._engine, self._is_told = engine, told_step is not None
        self._step = told_step
        if told_step is not None:
            metrics.POLICY_STEP.set(told_step)
        self._loaded: tuple[int, str] | None = None
        self._failed: tuple[int, str] | None = None
        self._retry_s, self._retry_at_s = FIRST_RETRY_S, 0.0

    @property
    def step(self) -> int | None:
        """That of the weights that are sampled; None: it is not known yet."""
        return self._step

    async def follow(self, policy: run_pb2.Policy, drained: Drained) -> None:
        """Let the engine sample from this policy, if it can and does not yet.

        Args:
            drained: waits until nothing is being sampled; False: it is too late for new weights.
                It is asked again while they are loaded.
        """
        wanted = (policy.policy_step, policy.uri)
        if self._is_told or wanted == self._loaded:
            return
        if not self._engine.loads_weights:
            self._adopt(wanted)
        elif self._is_worth_a_try(wanted) and await drained():
            await self._load(wanted, drained)

    def _is_worth_a_try(self, wanted: tuple[int, str]) -> bool:
        return wanted != self._failed or time.monotonic() >= self._retry_at_s

    async def _load(self, wanted: tuple[int, str], drained: Drained) -> None:
        step, uri = wanted
        started_s = time.monotonic()
        try:
            is_loaded = await self._finished(self._engine.load(uri), drained)
        except CheckpointError as error:
            self._retry_later(wanted)
            metrics.WEIGHT_LOADS.labels("skipped").inc()
            going_on = "none" if self._step is None else self._step
            logger.warning(
                "weights skipped policy_step=%d sampled_step=%s because=%s", step, going_on, error
            )
            return
        elapsed_s = time.monotonic() - started_s
        if not is_loaded:  # nor are the old ones whole any more, but nothing is sampled now
            logger.info("weights given up policy_step=%d uri=%s s=%.1f", step, uri, elapsed_s)
            return
        self._adopt(wanted)
        metrics.WEIGHT_LOADS.labels("loaded").inc()
        logger.info("weights loaded policy_step=%d uri=%s s=%.1f", step, uri, elapsed_s)

    async def _finished(self, load: Coroutine[Any, Any, None], drained: Drained) -> bool:
        """Whether it was seen through before it was too late."""
        loading = asyncio.create_task(load)
        try:
            while not (await asyncio.wait([loading], timeout=LOOK_S))[0]:
                if not await drained():
                    return False
            loading.result()
        finally:
            loading.cancel()
        return True

    def _retry_later(self, failed: tuple[int, str]) -> None:
        is_repeated = failed == self._failed
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S) if is_repeated else FIRST_RETRY_S
        self._failed, self._retry_at_s = failed, time.monotonic() + self._retry_s

    def _adopt(self, wanted: tuple[int, str]) -> None:
        self._loaded, self._failed = wanted, None
        self._step = wanted[0]
        metrics.POLICY_STEP.set(self._step)
