"""The real GRPOTrainer, three steps long, on what a real service serves."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_client import TrainerClient

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEPS, PROMPTS_PER_STEP, GROUP_SIZE = 4, 3, 2


def tiny_model() -> tuple[Any, Any]:
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

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
    return Qwen2ForCausalLM(config), tokenizer


def even_length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(len(ids) % 2 == 0) for ids in completion_ids]


class Crash(RuntimeError):
    """What takes the trainer down."""


class Recorder:
    """A reward function that notes what it scores by step, and takes the trainer down at one."""

    def __init__(self, crash_at: int | None = None) -> None:
        self.__name__ = "recorder"
        self.scored: dict[int, list[str]] = {}
        self._crash_at = crash_at

    def __call__(self, prompt_id: list[str] | None = None, **columns: Any) -> list[float]:
        if prompt_id is not None:  # not an evaluation
            step = columns["trainer_state"].global_step
            self.scored[step] = prompt_id
            if step == self._crash_at:
                raise Crash
        return even_length(**columns)


def train(
    client: TrainerClient, output_dir: Path, *, resume: bool, score: Any = even_length
) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from curriculum_client.adapters.trl import CurriculumFeed

    model, tokenizer = tiny_model()
    feed = CurriculumFeed(client)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=feed.dataset(),
        eval_dataset=Dataset.from_dict({"prompt": ["1 + 1"]}),
        reward_funcs=feed.reward(score),
        callbacks=[feed.callback()],
        args=GRPOConfig(
            output_dir=str(output_dir),
            max_steps=STEPS,
            per_device_train_batch_size=PROMPTS_PER_STEP * GROUP_SIZE,
            per_device_eval_batch_size=GROUP_SIZE,
            num_generations=GROUP_SIZE,
            max_completion_length=6,
            shuffle_dataset=False,
            ignore_data_skip=True,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train(resume_from_checkpoint=str(output_dir / "checkpoint-2") if resume else None)
    return feed


def test_training_reports_every_rollout_once_and_resumes(
    server: Any, stubs: Any, new_run: Any, tmp_path: Path
) -> None:
    run_id = new_run(64, selection={"group_size": GROUP_SIZE, "reach_attempt_factor": 1})

    def stats() -> Any:
        return stubs.operator.GetStats(op.GetStatsRequest(run_id=run_id)).stats

    with TrainerClient(server.address, run_id=run_id) as client:
        feed = train(client, tmp_path, resume=False)
    seen = stats()
    assert seen.group_count == STEPS * PROMPTS_PER_STEP
    assert seen.attempt_count == STEPS * PROMPTS_PER_STEP * GROUP_SIZE
    assert seen.leased_prompt_count == 0
    assert seen.policy_step == STEPS - 1  # the weights of the last rollouts
    assert len(feed.service_time_s) == STEPS

    with TrainerClient(server.address, run_id=run_id) as client:
        train(client, tmp_path, resume=True)
    resumed = stats()
    assert resumed.timeline == seen.timeline + 1
    assert resumed.attempt_count == seen.attempt_count
    assert resumed.leased_prompt_count == 0


def test_a_trainer_that_crashed_in_a_step_gets_the_same_prompts_when_it_resumes(
    server: Any, stubs: Any, new_run: Any, tmp_path: Path
) -> None:
    """It saves at step 2, with the prompts of step 2 fetched ahead, and goes down in step 3."""
    run_id = new_run(64, selection={"group_size": GROUP_SIZE, "reach_attempt_factor": 1})
    first, second = Recorder(crash_at=3), Recorder()
    with TrainerClient(server.address, run_id=run_id) as client, pytest.raises(Crash):
        train(client, tmp_path, resume=False, score=first)
    with TrainerClient(server.address, run_id=run_id) as client:
        train(client, tmp_path, resume=True, score=second)
    assert list(first.scored) == [0, 1, 2, 3]
    assert list(second.scored) == [2, 3]
    assert [second.scored[step] for step in (2, 3)] == [first.scored[step] for step in (2, 3)]
    stats = stubs.operator.GetStats(op.GetStatsRequest(run_id=run_id)).stats
    assert stats.attempt_count == STEPS * PROMPTS_PER_STEP * GROUP_SIZE
    assert stats.leased_prompt_count == 0
