"""Follows a TRL trainer: its steps, and the checkpoints that it saves and resumes from."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from curriculum_client import StateError
from curriculum_client.adapters import _marks

if TYPE_CHECKING:
    from curriculum_client.adapters.trl import CurriculumFeed

Publish = bool | Callable[[Path], str]
"""Whether probers are told of each checkpoint's folder; or what to tell them, by the folder."""

STATE_KEY = "CurriculumFeed"
"""Where a checkpoint's trainer_state.json keeps the feed's state, beside those of callbacks."""

WHOLE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""One of these is in a folder that probers can load."""


class CurriculumCallback(TrainerCallback):
    """What `CurriculumFeed.callback` gives."""

    def __init__(self, curriculum: CurriculumFeed, *, checkpoint: bool, publish: Publish) -> None:
        self._curriculum = curriculum
        self._client = curriculum.client
        self._checkpoint = checkpoint
        self._publish = publish

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        feed = self._curriculum.begin(args, state.global_step)
        if not (state.global_step and self._checkpoint):
            return
        saved = _saved(state).get(STATE_KEY)
        if saved is None:
            raise StateError(
                f"trainer_state.json: has no {STATE_KEY}; a training that was saved without the "
                "curriculum resumes with callback(checkpoint=False)"
            )
        feed.load_state_dict(saved)
        [request_id] = broadcast_object_list([f"resume-{uuid.uuid4().hex}"])
        self._client.rollback(_marks.name(state.global_step), request_id=request_id)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        feed = self._curriculum.feed
        _saved(state)[STATE_KEY] = feed.state_dict()
        self._curriculum.service_time_s.append(feed.waited_s)
        feed.waited_s = 0.0
        if self._checkpoint and control.should_save and state.is_world_process_zero:
            # Before the weights are there, or a crash would leave weights without a mark.
            self._client.checkpoint(_marks.name(state.global_step), policy_step=state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self._checkpoint:
            deletes = args.save_total_limit is not None
            _marks.add(
                self._client,
                state.global_step,
                is_kept=lambda step: not deletes or _weights(args, step).exists(),
            )
        if self._publish:
            folder = _weights(args, state.global_step).absolute()
            uri = self._publish(folder) if callable(self._publish) else _whole(folder)
            self._client.publish_policy(state.global_step, uri)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        PartialState().wait_for_everyone()
        self._curriculum.feed.close(ranks_ended=True)


def _saved(state: TrainerState) -> dict[str, Any]:
    """What trainer_state.json keeps of callbacks; declared as the list that it is made from."""
    return cast("dict[str, Any]", state.stateful_callbacks)


def _weights(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir), f"checkpoint-{step}")  # as TRL names it


def _whole(folder: Path) -> str:
    if not any((folder / name).exists() for name in WHOLE_WEIGHTS):
        raise StateError(
            f"publish=True: {folder} has no {WHOLE_WEIGHTS[0]}, so it is not whole weights; pass a "
            "function that merges or moves them and gives their URI, or False"
        )
    return str(folder)
