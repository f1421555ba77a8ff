"""One arm: TRL's GRPOTrainer on the prompts that one run of the service serves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model import MAX_ANSWER_TOKENS, pass_rate
from service import read_stats
from tasks import Task, score
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2ForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer

from curriculum_client import TrainerClient
from curriculum_client.adapters.trl import CurriculumFeed

LEARNING_RATE = 4e-4
HELD_OUT_SEED = 7
"""The same for every measurement, so that their differences are the model's."""


@dataclass(frozen=True)
class Plan:
    """What both arms have in common."""

    address: str
    model_dir: Path
    held_out: list[Task]
    held_out_attempts: int
    steps: int
    prompts_per_step: int
    group_size: int
    seed: int

    @property
    def rollouts_per_step(self) -> int:
        return self.prompts_per_step * self.group_size

    @property
    def settling_steps(self) -> int:
        """A fifth: the mixed fraction is counted from there, and beliefs are looked at there."""
        return max(self.steps // 5, 1)


@dataclass
class History:
    """What became of one arm."""

    mixed: list[float] = field(default_factory=list)
    """The fraction of mixed groups, of each step."""
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """After so many steps, this pass rate on held-out tasks."""
    service_time_s: list[float] = field(default_factory=list)
    beliefs_early: list[int] = field(default_factory=list)
    """Prompts by believed pass rate, a fifth of the way."""
    beliefs_late: list[int] = field(default_factory=list)
    rollouts: int = 0
    distinct_prompts: int = 0
    is_complete: bool = False


def train_arm(plan: Plan, run_id: str, on_step: Callable[[History], None]) -> History:
    """Train a copy of the warm-started model, and say how it went."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(plan.model_dir)
    model = Qwen2ForCausalLM.from_pretrained(plan.model_dir)
    with TrainerClient(plan.address, run_id=run_id) as client, tempfile.TemporaryDirectory() as out:
        feed = CurriculumFeed(client)
        history = History(service_time_s=feed.service_time_s)
        recorder = _Recorder(plan, run_id, history, on_step)
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=feed.dataset(),
            reward_funcs=feed.reward(right_answer),
            callbacks=[feed.callback(checkpoint=False), recorder],
            args=_config(plan, out),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    stats = read_stats(plan.address, run_id)
    history.beliefs_late = list(stats.pass_rate_histogram)
    history.rollouts = stats.attempt_count
    history.distinct_prompts = stats.prompt_count - stats.bands.unseen_count
    history.is_complete = True
    return history


def right_answer(
    completions: Sequence[str], payload: Sequence[Mapping[str, Any]], **_: Any
) -> list[float | None]:
    """The reward, as TRL calls it: each completion with its row's payload."""
    return [score(*pair) for pair in zip(completions, payload, strict=True)]


def _config(plan: Plan, output_dir: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=output_dir,
        max_steps=plan.steps,
        per_device_train_batch_size=plan.rollouts_per_step,
        num_generations=plan.group_size,
        shuffle_dataset=False,
        max_completion_length=MAX_ANSWER_TOKENS,
        temperature=1.0,
        top_k=0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        warmup_steps=10,
        adam_beta2=0.99,
        loss_type="dr_grpo",
        beta=0.0,
        seed=plan.seed,
        # For a model that is smaller than its overhead, on a CPU.
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        # The demo shows its own progress.
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        log_level="error",
    )


class _Recorder(TrainerCallback):
    """Writes the history while it happens."""

    def __init__(
        self, plan: Plan, run_id: str, history: History, on_step: Callable[[History], None]
    ) -> None:
        self._plan = plan
        self._run_id = run_id
        self._history = history
        self._on_step = on_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(0, **kwargs)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs: Mapping[str, float] = kwargs["logs"]
        if "frac_reward_zero_std" in logs:  # not in the closing summary
            self._history.mixed.append(1.0 - float(logs["frac_reward_zero_std"]))
            self._on_step(self._history)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self._plan.settling_steps:
            stats = read_stats(self._plan.address, self._run_id)
            self._history.beliefs_early = list(stats.pass_rate_histogram)
        if state.global_step in _measured_steps(self._plan):
            self._measure(state.global_step, **kwargs)

    def _measure(
        self, step: int, model: Any, processing_class: PreTrainedTokenizerFast, **_: Any
    ) -> None:
        rate = pass_rate(
            model,
            processing_class,
            self._plan.held_out,
            attempts=self._plan.held_out_attempts,
            seed=HELD_OUT_SEED,
        )
        self._history.held_out.append((step, rate))


def _measured_steps(plan: Plan) -> set[int]:
    return {round(plan.steps * tenth / 10) for tenth in range(2, 11, 2)}
