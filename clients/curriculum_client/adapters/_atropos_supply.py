"""An Atropos environment's prompts one by one, and reports that nobody waits for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

from curriculum_api.status import AWAY
from curriculum_client import (
    AsyncTrainerClient,
    Batch,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    ServedPrompt,
    StateError,
)
from curriculum_client._open_batches import OpenBatches, check_attempts

EMPTY_POOL_WAIT_S = 600.0
"""How long prompts that others hold may take to come back: as long as Atropos gives a rollout."""

ASK_AGAIN_S = 1.0
"""Atropos asks for items ten times a second; a dry pool need not be."""

_log = logging.getLogger("curriculum_client")


class Supply:
    """Prompts one by one, and reports that nobody waits for."""

    def __init__(self, client: AsyncTrainerClient) -> None:
        self.client = client
        self._queue: deque[ServedPrompt] = deque()
        self._open = OpenBatches()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failure: BaseException | None = None
        """What went wrong in the background; raised by `next` and `close`."""
        self._dry_since_s: float | None = None
        self._ask_again_s = 0.0

    async def next(
        self, prompt_count: int, attempt_count: int, policy_step: int
    ) -> ServedPrompt | None:
        """The next prompt, or None while others and rollouts in flight hold all there are."""
        self._raise_failure()
        if not self._queue and time.monotonic() >= self._ask_again_s:
            try:
                batch = await self.client.next_batch(prompt_count, policy_step=policy_step)
            except ConflictError:  # another environment has rolled the run back
                self._rejoin()
                return None
            if batch:
                await self._admit(batch, attempt_count)
            else:
                self._wait(batch.shortfall)
        return self._queue.popleft() if self._queue else None

    def report(
        self,
        served: ServedPrompt,
        rewards: Sequence[float | None],
        policy_step: int,
        token_counts: Sequence[int] | None,
    ) -> None:
        """Count a prompt's attempts, all there will be."""
        self._begin(self._report(served, rewards, policy_step, token_counts))

    def settle(self, served: ServedPrompt, spent_count: int) -> None:
        """Take note that nothing more will be reported of a prompt. Attempts that nobody will spend
        must not keep the leases of their batch."""
        if not served.lease:
            return
        scored, spent = {served.lease: served.attempt_count}, {served.lease: spent_count}
        for entry in self._open.settle(scored, spent):
            if entry.unspent_count > 0:
                self._begin(self._release(entry.batch))

    def mark(self, name: str, policy_step: int) -> None:
        """Mark a checkpoint, unless another has marked it already, or a later one."""
        self._begin(self._mark(name, policy_step))

    async def drain(self) -> None:
        """Wait for what is under way in the background."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Send what is under way, give back the rest and disconnect."""
        await self.drain()
        for entry in self._open:
            self._begin(self._release(entry.batch))
        self._open.clear()
        self._queue.clear()
        await self.drain()
        await self.client.close()
        self._raise_failure()

    async def _admit(self, batch: Batch, attempt_count: int) -> None:
        self._dry_since_s = None
        try:
            check_attempts(batch, attempt_count)
        except InvalidRequestError:
            await self.client.release(batch)
            raise
        self._queue.extend(batch)
        if not batch.is_fallback:
            self._open.add(batch, sum(served.attempt_count for served in batch))

    def _rejoin(self) -> None:
        self._queue.clear()
        self._open.clear()
        self.client.rejoin()
        _log.warning("run rolled back by another environment")

    async def _release(self, batch: Batch) -> None:
        try:
            await self.client.release(batch)
        except AWAY as error:  # the leases expire by themselves
            _log.warning("batch not released batch=%s because=%s", batch.batch_id, error)

    def _wait(self, shortfall: str) -> None:
        now_s = time.monotonic()
        self._ask_again_s = now_s + ASK_AGAIN_S
        if self._dry_since_s is None:
            self._dry_since_s = now_s
            _log.warning("nothing to serve because=%s", shortfall)
        if not self._open and now_s - self._dry_since_s >= EMPTY_POOL_WAIT_S:
            raise StateError(f"nothing to serve for {EMPTY_POOL_WAIT_S:.0f} s: {shortfall}")

    async def _mark(self, name: str, policy_step: int) -> None:
        try:
            await self.client.checkpoint(name, policy_step)
        except StateError as error:
            _log.warning("checkpoint not marked name=%s because=%s", name, error)

    async def _report(
        self,
        served: ServedPrompt,
        rewards: Sequence[float | None],
        policy_step: int,
        token_counts: Sequence[int] | None,
    ) -> None:
        leases = [served.lease] * len(rewards)
        try:
            await self.client.report_attempts(
                leases, rewards, policy_step=policy_step, token_counts=token_counts
            )
        finally:
            self.settle(served, sum(reward is not None for reward in rewards))

    def _begin(self, call: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ConflictError | NotFoundError):  # rolled back, or came far too late
            _log.warning("not counted because=%s", error)
        elif error is not None:
            self.failure = self.failure or error

    def _raise_failure(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
