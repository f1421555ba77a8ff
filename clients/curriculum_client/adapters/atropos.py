"""Rolls out with Atropos what the curriculum serves.

    class MyEnv(CurriculumEnv):                          # in place of BaseEnv
        async def setup(self):
            self.use_curriculum()

        async def collect_trajectories(self, item):      # a ServedPrompt
            ...                                          # as before; get_next_item is gone

or, of an environment that is there already:

    class Served(CurriculumEnv, TheirEnv):
        async def setup(self):
            await super().setup()
            self.use_curriculum(to_item=lambda served: (served.text, served.payload["answer"]))

Every group is reported as `collect_trajectories` gives it, before Atropos drops those whose scores
are all equal. An environment that drops them itself, scores them later or gives several groups for
an item first says what it saw: `self.report_scores(item, scores)`. Items of others, those of an
evaluation say, are not reported. Create the run with the environment's group_size and with
reach_attempt_factor 1, and mind reward_range and pass_threshold: scores are often -1 and 1.

The policy step is all that an environment learns of the trainer: the batches that it had taken when
a rollout began. Override `curriculum_step` if yours knows more.

Any number of environments share a run: each is a consumer of its own, or all would be given the
same prompts. Whenever the trainer reaches a multiple of its checkpoint interval they mark the
curriculum, and when it starts from there, the first environment of its name rolls it back.

Tried with atroposlib 0.4.0 on Python 3.11.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atroposlib.envs.base import BaseEnv

from curriculum_client import AsyncTrainerClient, InvalidRequestError, ServedPrompt, StateError
from curriculum_client.adapters import _marks
from curriculum_client.adapters._atropos_supply import Supply

_PROMPT = -100
"""What the mask has for a token that was not generated."""

_log = logging.getLogger("curriculum_client")


@dataclass
class _Rollout:
    item: Any
    """Kept, so that no other gets its id."""
    served: ServedPrompt
    policy_step: int


class CurriculumEnv(BaseEnv):  # type: ignore[misc]
    """A BaseEnv whose items are a run's prompts. Its `setup` must call `use_curriculum`."""

    curriculum_checkpoint: str | None = None
    """The mark to return to. Atropos sets it when it loads the environment's checkpoint."""

    collect_trajectories: Callable[[Any], Any]
    _supply: Supply | None = None

    def use_curriculum(
        self,
        client: AsyncTrainerClient | None = None,
        *,
        prompt_count: int | None = None,
        to_item: Callable[[ServedPrompt], Any] = lambda served: served,
    ) -> None:
        """Roll out what the run serves, and report what becomes of it.

        Args:
            client: Of the run, and of a consumer that no other process has; closed at the end. None
                makes one from the environment, see `AsyncTrainerClient.from_environment`.
            prompt_count: Prompts to ask for at once. None for as many as are rolled out at once,
                so that each choice knows nearly all that came of the one before.
            to_item: Makes an item of a prompt.

        Raises:
            StateError: The class has a `get_next_item` of its own.
        """
        if type(self).get_next_item is not CurriculumEnv.get_next_item:
            raise StateError(f"{type(self).__name__}.get_next_item: must not be defined")
        self._supply = Supply(client or _client())
        self._prompt_count = prompt_count
        self._to_item = to_item
        self._rollouts: dict[int, _Rollout] = {}
        """By the item's id: items need not be hashable."""
        self._roll_out = self.collect_trajectories
        self.collect_trajectories = self._collect

    def curriculum_step(self) -> int:
        """The policy step of rollouts that begin now."""
        return int(self.curr_step)

    def report_scores(
        self, item: Any, scores: Sequence[float | None], token_counts: Sequence[int] | None = None
    ) -> None:
        """Report an item's attempts, in place of what `collect_trajectories` gives for it.

        Nothing waits for it. What goes wrong is raised when the next item is asked for.

        Args:
            item: As it was given; of one that is not the curriculum's nothing is reported.
            scores: One for each attempt; None leaves it out.
            token_counts: Tokens that each attempt took.
        """
        if (rollout := self._rollouts.pop(id(item), None)) is not None:
            self._given.report(rollout.served, scores, rollout.policy_step, token_counts)

    async def get_next_item(self) -> Any:
        """The item of the next prompt; None where the pool is dry, and Atropos asks again."""
        supply, step = self._given, self.curriculum_step()
        mark, self.curriculum_checkpoint = self.curriculum_checkpoint, None
        if mark and self.wandb_prepend == f"{self.config.wandb_name}_0":
            await supply.client.rollback(mark)
        count = self._prompt_count or max(1, self.max_num_workers)
        served = await supply.next(count, self.config.group_size, step)
        if served is None:
            return None
        item = self._to_item(served)
        if item is None:
            raise InvalidRequestError(f"to_item: gave None for prompt {served.prompt_id!r}")
        self._give_up(item)  # the same object may be that of a lease that ran out
        self._rollouts[id(item)] = _Rollout(item, served, step)
        return item

    def save_checkpoint(self, step: int, data: dict[str, Any] | None = None) -> None:
        if self._supply:
            self._supply.mark(mark := _marks.name(step), step)
            data = {**(data or {}), "curriculum_checkpoint": mark}
        super().save_checkpoint(step, data)

    async def env_manager(self) -> None:
        try:
            await super().env_manager()
        finally:
            await self._end()

    async def process_manager(self) -> None:
        try:
            await super().process_manager()
        finally:
            await self._end()

    @property
    def _given(self) -> Supply:
        if self._supply is None:
            raise StateError(f"{type(self).__name__}.setup: must call self.use_curriculum()")
        return self._supply

    async def _collect(self, item: Any) -> Any:
        """The environment's own `collect_trajectories`, and a report of what it gives."""
        if (rollout := self._rollouts.get(id(item))) is None:
            return await self._roll_out(item)
        rollout.policy_step = self.curriculum_step()
        try:
            groups, backlog = await self._roll_out(item)
            if id(item) in self._rollouts and (found := self._only(groups)):
                self.report_scores(item, found["scores"], _token_counts(found))
            is_kept = _has(backlog, item)
        except asyncio.CancelledError:  # to be rolled out again, unless it took too long
            again = (running["item"] for running in self.running_items.values())
            is_kept = _has([*self.backlog, *again], item)
            raise
        except BaseException:
            is_kept = False
            raise
        finally:
            if not is_kept:
                self._give_up(item)
        return groups, backlog

    def _only(self, groups: Any) -> Mapping[str, Any] | None:
        """The one group that `collect_trajectories` gave; None where it gave nothing."""
        found = [group for group in (groups if isinstance(groups, list) else [groups]) if group]
        if not found:
            return None
        group = found[0]
        if len(found) == 1 and isinstance(group, Mapping) and group.get("scores") is not None:
            return group
        # Raised here, Atropos would log it and go on.
        self._given.failure = InvalidRequestError(
            f"collect_trajectories: gave {len(found)} of {type(group).__name__}: must give one "
            "group with scores, or call self.report_scores(item, scores) before"
        )
        return None

    def _give_up(self, item: Any) -> None:
        if (rollout := self._rollouts.pop(id(item), None)) is not None:
            _log.warning("rollout not reported prompt=%s", rollout.served.prompt_id)
            self._given.settle(rollout.served, 0)

    async def _end(self) -> None:
        for worker in self.workers:
            worker.cancel()
        await asyncio.gather(*self.workers, return_exceptions=True)
        if self._supply:
            await self._supply.close()


def _client() -> AsyncTrainerClient:
    name = os.environ.get("CURRICULUM_CONSUMER", "atropos")
    return AsyncTrainerClient.from_environment(consumer=f"{name}-{uuid.uuid4().hex}")


def _has(items: Sequence[Any], item: Any) -> bool:
    return any(other is item for other in items)


def _token_counts(group: Mapping[str, Any]) -> list[int] | None:
    masks = group.get("masks")
    return [sum(token != _PROMPT for token in mask) for mask in masks] if masks else None
