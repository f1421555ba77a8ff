"""The asyncio client: `TrainerClient` with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from curriculum_api.channel import bearer
from curriculum_api.status import error_from_rpc
from curriculum_client._attempts import PerAttempt
from curriculum_client._base import ClientBase
from curriculum_client._batch import Batch, Receipt
from curriculum_client._flow import Call, Flow, Sleep
from curriculum_client._outcomes import PerPrompt

T = TypeVar("T")


class AsyncTrainerClient(ClientBase):
    __doc__ = ClientBase.__doc__

    _transport = grpc.aio

    async def next_batch(
        self,
        prompt_count: int,
        *,
        policy_step: int,
        request_id: str | None = None,
        rollout_budget: int | None = None,
    ) -> Batch:
        """See TrainerClient.next_batch."""
        return await self._run(
            self._core.next_batch(prompt_count, policy_step, request_id, rollout_budget)
        )

    async def report(
        self,
        batch: Batch,
        rewards: PerPrompt,
        *,
        policy_step: int,
        token_counts: PerPrompt | None = None,
        channels: Mapping[str, PerPrompt] | None = None,
        part: str | int | None = None,
    ) -> Receipt | None:
        """See TrainerClient.report."""
        return await self._run(
            self._core.report(
                batch,
                rewards,
                policy_step=policy_step,
                token_counts=token_counts,
                channels=channels,
                part=part,
            )
        )

    async def report_attempts(
        self,
        leases: Sequence[str | None],
        rewards: PerAttempt,
        *,
        policy_step: int | Sequence[int],
        token_counts: PerAttempt | None = None,
        channels: Mapping[str, PerAttempt] | None = None,
        part: str | int | None = None,
    ) -> Receipt | None:
        """See TrainerClient.report_attempts."""
        return await self._run(
            self._core.report_attempts(
                leases,
                rewards,
                policy_step=policy_step,
                token_counts=token_counts,
                channels=channels,
                part=part,
            )
        )

    async def release(self, batch: Batch) -> int:
        """See TrainerClient.release."""
        return await self._run(self._core.release(batch))

    async def publish_policy(self, policy_step: int, uri: str) -> None:
        """See TrainerClient.publish_policy."""
        await self._run(self._core.publish_policy(policy_step, uri))

    async def checkpoint(self, name: str, policy_step: int) -> dict[str, int]:
        """See TrainerClient.checkpoint."""
        return await self._run(self._core.checkpoint(name, policy_step))

    async def delete_checkpoint(self, name: str) -> dict[str, int]:
        """See TrainerClient.delete_checkpoint."""
        return await self._run(self._core.delete_checkpoint(name))

    async def rollback(self, checkpoint_name: str, *, request_id: str | None = None) -> int:
        """See TrainerClient.rollback."""
        return await self._run(self._core.rollback(checkpoint_name, request_id))

    async def flush(self) -> Receipt:
        """See TrainerClient.flush."""
        return await self._run(self._core.delivery.flush())

    async def close(self) -> None:
        """See TrainerClient.close."""
        await self._close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close(error)

    async def _close(self, failure: BaseException | None) -> None:
        try:
            await self._run(self._core.delivery.close(failure))
        finally:
            if (channel := self._link.detach()) is not None:
                await channel.close()

    async def _run(self, flow: Flow[T]) -> T:
        advance, value = flow.send, None
        try:
            while True:
                step = advance(value)
                try:
                    advance, value = flow.send, await self._perform(step)
                except grpc.RpcError as error:
                    advance, value = flow.throw, error_from_rpc(error)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    async def _perform(self, step: Call | Sleep) -> Any:
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.duration_s)
        method = getattr(self._link.stub(asyncio.get_running_loop()), step.method)
        return await method(
            step.request, timeout=step.timeout_s, metadata=bearer(self._core.settings.token)
        )
