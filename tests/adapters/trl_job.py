"""A few steps of the real GRPOTrainer with a tiny model; as a script, one rank of them."""

from __future__ import annotations

import json
import os
import string
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from curriculum_client import TrainerClient
from curriculum_client.adapters.trl import CurriculumFeed, CurriculumGRPOTrainer

STREAM, JUST_IN_TIME = "stream", "just-in-time"
STEPS, PROMPTS_PER_STEP, GROUP_SIZE = 4, 3, 2
SELECTION = {"group_size": GROUP_SIZE, "reach_attempt_factor": 1}
CRASHED = 7
"""The exit status of a rank that was told to crash."""


def tiny_model() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    vocabulary = {piece: i for i, piece in enumerate(["<pad>", "<end>", *string.printable])}
    characters = Tokenizer(models.WordLevel(vocabulary, "<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config), tokenizer


def grpo_config(output_dir: Path, **changes: Any) -> GRPOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": STEPS,
        "per_device_train_batch_size": PROMPTS_PER_STEP * GROUP_SIZE,
        "per_device_eval_batch_size": GROUP_SIZE,
        "num_generations": GROUP_SIZE,
        "max_completion_length": 6,
        "shuffle_dataset": False,
        "ignore_data_skip": True,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return GRPOConfig(**(settings | changes))


class Crash(RuntimeError):
    """What takes the trainer down."""


class Recorder:
    """A reward function that notes what it scores by step, and takes the trainer down at one."""

    def __init__(self, crash_at: int | None = None, file: Path | None = None) -> None:
        self.__name__ = "recorder"
        self.scored: dict[int, list[str]] = {}
        self.attempts: list[tuple[str, float]] = []
        self.evaluated_count = 0
        self._crash_at = crash_at
        self._file = file

    def __call__(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        rewards = [float(len(ids) % 2 == 0) for ids in completion_ids]
        if "prompt_id" not in columns:
            self.evaluated_count += len(rewards)
            return rewards
        step, prompt_ids = columns["trainer_state"].global_step, columns["prompt_id"]
        assert all(len(set(column)) > 1 for column in (prompt_ids, columns["lease"]))
        for prompt, payload in zip(columns["prompts"], columns["payload"], strict=True):
            assert prompt == f"What is {payload['answer'] // 2} + {payload['answer'] // 2}?"
        self.scored.setdefault(step, []).extend(prompt_ids)
        self.attempts += zip(prompt_ids, rewards, strict=True)
        if self._file is not None:
            self._file.write_text(json.dumps(self.scored))
        if step == self._crash_at:
            PartialState().wait_for_everyone()  # or a rank may go down before it has noted anything
            raise Crash
        return rewards


def trainer_of(
    way: str, client: TrainerClient, score: Any, args: GRPOConfig, **options: Any
) -> Any:
    """A trainer by one of the two ways."""
    model, tokenizer = tiny_model()
    common: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "eval_dataset": Dataset.from_dict({"prompt": ["1 + 1"]}),
        "args": args,
    }
    if way == JUST_IN_TIME:
        return CurriculumGRPOTrainer(curriculum=client, reward_funcs=score, **common, **options)
    feed = CurriculumFeed(client)
    trainer = GRPOTrainer(**feed.arguments(score, **options), **common)
    trainer.curriculum = feed
    return trainer


def train(way: str, client: TrainerClient, score: Any, output_dir: Path, **changes: Any) -> Any:
    """Trains with changed settings, from checkpoint `resume` if it is given; the trainer."""
    resume, options = changes.pop("resume", None), changes.pop("options", {})
    trainer = trainer_of(way, client, score, grpo_config(output_dir, **changes), **options)
    checkpoint = output_dir / f"checkpoint-{resume}"
    trainer.train(resume_from_checkpoint=str(checkpoint) if resume else None)
    return trainer


def main(way: str, address: str, run_id: str, out: str, changes_json: str) -> None:
    """One rank, which writes what it scored."""
    changes = json.loads(changes_json)
    name = "resumed" if "resume" in changes else "scored"
    file = Path(out, f"{name}-{os.environ['RANK']}.json")
    recorder = Recorder(changes.pop("crash_at", None), file)
    with TrainerClient(address, run_id=run_id) as client:
        try:
            train(way, client, recorder, Path(out), **changes)
        except Crash:
            os._exit(CRASHED)  # as a machine that goes down, without another word


if __name__ == "__main__":
    main(*sys.argv[1:])
