"""A trainer that asks for the prompts of each batch when it generates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from trl.trainer.grpo_trainer import GRPOTrainer

from curriculum_client import InvalidRequestError, TrainerClient
from curriculum_client.adapters._trl_callback import Publish
from curriculum_client.adapters._trl_feed import TEXT, CurriculumFeed, ToPrompt, are_spent

if TYPE_CHECKING:
    _Trainer = GRPOTrainer
else:
    _Trainer = object


class CurriculumMixin(_Trainer):
    """Makes a trainer ask for each batch when it generates: class Mine(CurriculumMixin, MyGRPO).

    What is reported is the sum of all rewards by their weights, as TRL adds them up; it must lie in
    the run's range of rewards.

    Args:
        model, reward_funcs, args, callbacks: As GRPOTrainer's; args.max_steps must be set. An epoch
            is a few steps and has no meaning.
        curriculum: Connected to the run. One in each training process, all of the same consumer.
        to_prompt, checkpoint, publish: See `CurriculumFeed` and its `callback`.
        channels: Names of reward functions whose values are reported for channels of these names
            as well. One whose reward weight is 0 is a channel only.
        **others: GRPOTrainer's, except train_dataset.

    Raises:
        InvalidRequestError: An argument is not allowed.
    """

    model: Any
    num_generations: int

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        *,
        curriculum: TrainerClient,
        to_prompt: ToPrompt = TEXT,
        channels: Sequence[str] = (),
        checkpoint: bool = True,
        publish: Publish = False,
        callbacks: Sequence[Any] | None = None,
        **others: Any,
    ) -> None:
        if others.pop("train_dataset", None) is not None:
            raise InvalidRequestError("train_dataset: must be left out; the run has the prompts")
        max_steps = -1 if args is None else args.max_steps
        if max_steps <= 0:
            raise InvalidRequestError(f"args.max_steps={max_steps}: must be at least 1")
        self.curriculum = CurriculumFeed(curriculum, to_prompt=to_prompt)
        self._channels = channels
        self._leases: list[str] = []
        """Of the attempts under way, on all ranks."""
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset=_placeholders(args),
            callbacks=[
                *(callbacks or ()),
                self.curriculum.callback(checkpoint=checkpoint, publish=publish),
            ],
            **others,
        )
        for name in channels:
            if name not in self.reward_func_names:
                raise InvalidRequestError(
                    f"channels: {name!r}: must be of reward_funcs, {self.reward_func_names}"
                )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:
            inputs = self._served(len(inputs))
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return scored

    def _served(self, row_count: int) -> list[dict[str, Any]]:
        """This rank's rows of the batch that all ranks ask for."""
        attempt_count = row_count * self.accelerator.num_processes
        first = self.accelerator.process_index * row_count
        prompts = self.curriculum.take(attempt_count // self.num_generations)
        attempts = [served for served in prompts for _ in range(self.num_generations)]
        self._leases = [served.lease for served in attempts]
        return [self.curriculum.row(served) for served in attempts[first : first + row_count]]

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        if self.model.training:
            self._report(rewards.double().cpu(), completion_ids_list)
        return rewards

    def _report(self, columns: torch.Tensor, completion_ids: Sequence[Sequence[int]]) -> None:
        """Of a tensor of all ranks' attempts by reward functions."""
        total = (columns * self.reward_weights.double().cpu()).nansum(dim=1)
        total[columns.isnan().all(dim=1)] = math.nan  # nobody scored it
        rewards = _rounded(total)
        names = self.reward_func_names
        channels = {name: _rounded(columns[:, names.index(name)]) for name in self._channels}
        first = self.accelerator.process_index * len(completion_ids)
        own = slice(first, first + len(completion_ids))
        self.curriculum.report(
            self._leases[own],
            rewards[own],
            {name: values[own] for name, values in channels.items()},
            completion_ids,
            self.state.global_step,
        )
        self.curriculum.feed.settle(self._leases, are_spent(rewards, channels))


class CurriculumGRPOTrainer(CurriculumMixin, GRPOTrainer):
    """GRPOTrainer, with `CurriculumMixin`."""


def _placeholders(args: Any) -> Dataset:
    """Rows for a whole number of steps and of generations, so that no epoch ends within one."""
    prompt_count = args.generation_batch_size // args.num_generations
    return Dataset.from_dict({"prompt": [""] * prompt_count * args.gradient_accumulation_steps})


def _rounded(column: torch.Tensor) -> list[float | None]:
    """Without the traces of float32: what is 1 to its maker must reach a threshold of 1."""
    return [None if math.isnan(value) else round(value, 6) for value in column.tolist()]
