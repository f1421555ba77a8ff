"""Trains with TRL's GRPOTrainer on what the curriculum serves.

    feed = CurriculumFeed(client)
    trainer = GRPOTrainer(
        train_dataset=feed.dataset(),
        reward_funcs=feed.reward(my_reward),
        callbacks=[feed.callback()],
        args=GRPOConfig(max_steps=1000, shuffle_dataset=False, ...),
        ...,
    )

TRL gives every prompt num_generations attempts, so create the run with that group_size and with
reach_attempt_factor 1. TRL fetches a batch ahead of time: the pool should hold several batches. A
run whose objective names channels needs them with every reward:

    reward_funcs=feed.reward(my_reward, channels={"explanation": my_explanation_score})

Tried with TRL 1.16.0, on one rank and on two; TRL takes an IterableDataset since 1.9.0.
"""

from __future__ import annotations

import functools
import logging
import operator
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from curriculum_api.errors import CurriculumError, InvalidRequestError, StateError
from curriculum_client import Batch, ServedPrompt, TrainerClient

Reward = Callable[..., list[float | None]]
"""A reward function as TRL calls it; None leaves a completion out."""

MAX_OPEN_BATCHES = 64
"""A rank that scores only parts of each batch cannot see when all is scored: it forgets the
oldest batch instead. TRL is never more than a few batches ahead."""

STATE_KEY = "CurriculumFeed"
"""Where a checkpoint's trainer_state.json keeps the feed's state, beside those of callbacks."""

EMPTY_POOL_WAIT_S = 30.0
"""How long prompts that others hold may take to come back before training fails."""

_log = logging.getLogger("curriculum_client")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class _OpenBatch:
    batch: Batch
    client_state: dict[str, Any]
    """The client's, before it asked for the batch."""
    unscored_count: int
    """Completions that are still to be scored, on this rank or another."""
    unspent_count: int
    """Attempts that were allotted and not reported by this rank."""
    is_begun: bool = False
    """Whether this rank has scored a part of it; until then it was only fetched ahead."""


class CurriculumFeed:
    """Carries a run's prompts into GRPOTrainer, and their rewards back.

    Args:
        client: Connected to the run. One in each training process, all of the same consumer.
        to_prompt: Makes TRL's prompt of a served one: a string or a list of messages.
    """

    def __init__(
        self,
        client: TrainerClient,
        *,
        to_prompt: Callable[[ServedPrompt], Any] = operator.attrgetter("text"),
    ) -> None:
        self.service_time_s: list[float] = []
        """Seconds that each finished step waited for the service."""
        self._client = client
        self._to_prompt = to_prompt
        self._prompts_per_batch = 0
        self._num_generations = 0
        self._policy_step = 0
        self._resumed_steps: deque[int] = deque()
        """The policy steps of batches that were fetched ahead of the checkpoint resumed from."""
        self._waited_s = 0.0
        self._open: dict[str, _OpenBatch] = {}

    def dataset(self) -> IterableDataset:
        """An endless train_dataset of the columns prompt, prompt_id, domain, payload and lease."""
        return IterableDataset.from_generator(self._rows)

    def reward(self, score: Reward, *, channels: Mapping[str, Reward] | None = None) -> Reward:
        """The plain function `score`, with its rewards for served prompts reported as well.

        `channels` are functions of the same kind by the names of channels of the run: what they
        give is reported with the rewards, and TRL does not see it. Training ends at the first
        report with an InvalidRequestError where one is missing that the run's objective names.
        """

        @functools.wraps(score)
        def scored(**columns: Any) -> list[float | None]:
            rewards = score(**columns)
            if "lease" in columns:  # rows of an eval_dataset have none
                given = {name: value(**columns) for name, value in (channels or {}).items()}
                self._report(rewards, given, columns)
            return rewards

        return scored

    def callback(self, *, checkpoint: bool = True) -> TrainerCallback:
        """Follows the trainer's steps, and at the end gives back what was not attempted.

        With `checkpoint`, a saved checkpoint also marks the curriculum, and a training that is
        resumed from it (with ignore_data_skip=True) first rolls the curriculum back to the mark and
        then gets the batches that the first one got. With save_total_limit, marks go with the
        checkpoints that TRL deletes.
        """
        return _Callback(self, checkpoint)

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self._prompts_per_batch:
            raise StateError("GRPOTrainer(callbacks=...): must contain feed.callback()")
        while True:
            batch = self._next_batch()
            for served in batch:
                yield {
                    "prompt": self._to_prompt(served),
                    "prompt_id": served.prompt_id,
                    "domain": served.domain,
                    "payload": served.payload,
                    "lease": None if batch.is_fallback else [batch.batch_id, served.slot],
                }

    def _next_batch(self) -> Batch:
        deadline_s = time.monotonic() + EMPTY_POOL_WAIT_S
        while not (batch := self._timed(self._lease)):
            if time.monotonic() > deadline_s:
                raise StateError(
                    f"nothing to serve for {EMPTY_POOL_WAIT_S:.0f} s, with {len(self._open)} "
                    f"batches of this trainer in flight: {batch.shortfall}"
                )
            time.sleep(1.0)
        return batch

    def _lease(self) -> Batch:
        client_state = self._client.state_dict()
        resumed = self._resumed_steps
        batch = self._client.next_batch(
            prompt_count=self._prompts_per_batch,
            policy_step=resumed[0] if resumed else self._policy_step,
        )
        if batch and resumed and not batch.is_fallback:
            resumed.popleft()
        for served in batch:
            if served.attempt_count < self._num_generations:
                self._client.release(batch)
                raise InvalidRequestError(
                    f"num_generations={self._num_generations}: prompt {served.prompt_id!r} is to "
                    f"get {served.attempt_count} attempts; group_size must be num_generations"
                )
        if batch and not batch.is_fallback:
            self._open[batch.batch_id] = _OpenBatch(
                batch,
                client_state,
                unscored_count=len(batch) * self._num_generations,
                unspent_count=sum(served.attempt_count for served in batch),
            )
            if len(self._open) > MAX_OPEN_BATCHES:
                del self._open[next(iter(self._open))]
        return batch

    def _report(
        self,
        rewards: Sequence[float | None],
        channels: Mapping[str, Sequence[float | None]],
        columns: Mapping[str, Any],
    ) -> None:
        rows_by_batch: dict[str, list[int]] = defaultdict(list)
        for row, lease in enumerate(columns["lease"]):
            if lease is not None and lease[0] in self._open:
                rows_by_batch[lease[0]].append(row)
        token_counts = [len(ids) for ids in columns["completion_ids"]]
        values = (rewards, *channels.values())
        for batch_id, rows in rows_by_batch.items():
            slots = {
                row: columns["lease"][row][1]
                for row in rows
                if not any(column[row] is None for column in values)
            }
            self._timed(
                self._client.report,
                self._open[batch_id].batch,
                _by_slot(rewards, slots),
                policy_step=columns["trainer_state"].global_step,
                token_counts=_by_slot(token_counts, slots),
                channels={name: _by_slot(column, slots) for name, column in channels.items()},
            )
            self._open[batch_id].is_begun = True
            self._settle(batch_id, scored_count=len(rows), spent_count=len(slots))

    def _settle(self, batch_id: str, *, scored_count: int, spent_count: int) -> None:
        """Forget a batch that is scored to its end; attempts not spent must not keep its leases."""
        entry = self._open[batch_id]
        entry.unscored_count -= scored_count
        entry.unspent_count -= spent_count
        if entry.unscored_count <= 0:
            del self._open[batch_id]
            if entry.unspent_count:
                self._timed(self._client.release, entry.batch)

    def _timed(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        started_s = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            self._waited_s += time.perf_counter() - started_s

    def _begin(self, args: Any, state: TrainerState, *, roll_back: bool) -> None:
        if args.shuffle_dataset:
            raise InvalidRequestError("shuffle_dataset=True: must be False; it reads far ahead")
        if state.global_step and not args.ignore_data_skip:
            raise InvalidRequestError("ignore_data_skip=False: must be True to resume")
        self._num_generations = args.num_generations
        self._prompts_per_batch = args.generation_batch_size // args.num_generations
        self._policy_step = state.global_step
        if state.global_step and roll_back:
            self._load_state(state)
            [request_id] = broadcast_object_list([f"resume-{uuid.uuid4().hex}"])
            self._client.rollback(_mark(state), request_id=request_id)

    def _end_step(self, state: TrainerState) -> None:
        self._policy_step = state.global_step
        self.service_time_s.append(self._waited_s)
        self._waited_s = 0.0
        _saved(state)[STATE_KEY] = self._state()

    def _state(self) -> dict[str, Any]:
        """Where a resumed training goes on: at the first batch that nothing of is scored yet."""
        ahead = [entry for entry in self._open.values() if not entry.is_begun]
        position = ahead[0].client_state if ahead else self._client.state_dict()
        # Reports of an older timeline are not repeated, so their numbers need not be kept.
        return {
            "client": {**position, "parts": {}},
            "policy_steps": [entry.batch.policy_step for entry in ahead],
        }

    def _load_state(self, state: TrainerState) -> None:
        saved = _saved(state).get(STATE_KEY)
        if saved is None:  # the checkpoint is from before the feed kept any
            return
        self._client.load_state_dict(saved["client"])
        self._resumed_steps = deque(saved["policy_steps"])

    def _checkpoint(self, args: TrainingArguments, state: TrainerState) -> None:
        kept = self._client.checkpoint(_mark(state), policy_step=state.global_step)
        if args.save_total_limit is None:
            return
        for name, step in kept.items():
            weights = Path(str(args.output_dir), f"checkpoint-{step}")  # as TRL names it
            if name == f"step-{step}" and not weights.exists():
                self._client.delete_checkpoint(name)

    def _end(self) -> None:
        for entry in self._open.values():
            try:
                self._client.release(entry.batch)
            except CurriculumError as error:  # the leases expire by themselves
                _log.warning("batch not released batch=%s because=%s", entry.batch.batch_id, error)
        self._open.clear()


class _Callback(TrainerCallback):
    def __init__(self, feed: CurriculumFeed, checkpoint: bool) -> None:
        self._feed = feed
        self._checkpoint = checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._feed._begin(args, state, roll_back=self._checkpoint)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._feed._end_step(state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._checkpoint and state.is_world_process_zero:
            self._feed._checkpoint(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._feed._end()


def _by_slot(column: Sequence[Any], slots: Mapping[int, int]) -> dict[int, list[Any]]:
    """The values of a column's rows, given the slot of each row that counts."""
    found: dict[int, list[Any]] = defaultdict(list)
    for row, slot in slots.items():
        found[slot].append(column[row])
    return found


def _saved(state: TrainerState) -> dict[str, Any]:
    """What trainer_state.json keeps of callbacks; declared as the list that it is made from."""
    return cast("dict[str, Any]", state.stateful_callbacks)


def _mark(state: TrainerState) -> str:
    return f"step-{state.global_step}"
