"""How long a TRL trainer waits for the curriculum in each step, with and without prefetch.

A real GRPOTrainer and a server in a process of its own, with requests of full size; only the model
and its completions are tiny. Prefetch is on and off in turn, so that both meet the same noise. In
steps that take less than the service does, prefetch can hide less. The last line is one JSON
object: quartiles in milliseconds, and the share of a step of one second for the way whose median
with prefetch is longest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import grpc
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from curriculum_api.limits import MAX_ADD_PROMPTS
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_client import TrainerClient
from curriculum_client.adapters.trl import CurriculumFeed, CurriculumGRPOTrainer
from tests.bench.bench_service import OPTIONS, TEXT, process

WAYS = ("stream", "just in time")
WARM_STEPS = 2
"""The first of a run, that are not counted."""
STEP_S = 1.0

Times = dict[str, list[float]]


class TimedClient(TrainerClient):
    """A client that notes how long its reports took."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.report_s: list[float] = []

    def report_attempts(self, *args: Any, **columns: Any) -> Any:
        started_s = time.perf_counter()
        try:
            return super().report_attempts(*args, **columns)
        finally:
            self.report_s.append(time.perf_counter() - started_s)


class Alternating(TrainerCallback):
    """Turns prefetch on and off, and notes how long steps take."""

    def __init__(self) -> None:
        self.curriculum: Any = None
        self.step_s: list[float] = []
        self._started_s = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.curriculum.feed.prefetch = is_prefetched(state.global_step + 1)
        self._started_s = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_s.append(time.perf_counter() - self._started_s)


def is_prefetched(step: int) -> bool:
    """Whether the batch that is taken in this step was asked for in the one before."""
    return step % 2 == 1


def coin(completion_ids: Sequence[Any], **_: Any) -> list[float]:
    """A reward that needs no right answers."""
    return torch.bernoulli(torch.full((len(completion_ids),), 0.5)).tolist()


def tiny_model() -> tuple[Any, Any]:
    """It reads every word as the same token."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "word": 2}, "word"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=3, **sizes, **heads, **ends)), tokenizer


def fill(address: str, run_id: str, options: argparse.Namespace) -> None:
    selection = run_pb2.SelectionConfig(group_size=options.generations, reach_attempt_factor=1)
    with grpc.insecure_channel(address, OPTIONS) as channel:
        operator = OperatorServiceStub(channel)
        config = run_pb2.RunConfig(selection=selection)
        operator.CreateRun(op.CreateRunRequest(run_id=run_id, config=config))
        for start in range(0, options.pool, MAX_ADD_PROMPTS):
            prompts = [
                prompt_pb2.Prompt(
                    prompt_id=f"p{i}",
                    domain=f"d{i % 4}",
                    text=TEXT.format(i, i % 97),
                    payload_json=f'{{"answer": {i}}}',
                )
                for i in range(start, min(options.pool, start + MAX_ADD_PROMPTS))
            ]
            operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=prompts))


def train(way: str, client: TimedClient, options: argparse.Namespace) -> tuple[Any, list[float]]:
    """The feed with its times, and how long each step took."""
    model, tokenizer = tiny_model()
    rhythm = Alternating()
    with tempfile.TemporaryDirectory() as out:
        args = GRPOConfig(
            out,
            max_steps=options.steps + WARM_STEPS,
            per_device_train_batch_size=options.prompts * options.generations,
            num_generations=options.generations,
            max_completion_length=2,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            log_level="error",
        )
        common = {"model": model, "processing_class": tokenizer, "args": args}
        trainer: Any
        if way == "stream":
            rhythm.curriculum = CurriculumFeed(client)
            trainer = GRPOTrainer(**rhythm.curriculum.arguments(coin, checkpoint=False), **common)
        else:
            trainer = CurriculumGRPOTrainer(
                curriculum=client, reward_funcs=coin, checkpoint=False, **common
            )
            rhythm.curriculum = trainer.curriculum
        trainer.add_callback(rhythm)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return rhythm.curriculum, rhythm.step_s


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Quartiles, in milliseconds."""
    found: dict[str, Any] = {"prompts": options.prompts, "generations": options.generations}
    found["pool"] = options.pool
    with tempfile.TemporaryDirectory() as data:
        flags = ("--listen", "127.0.0.1:0", "--data-dir", data, "--log-level", "error")
        with process("-m", "curriculum_server.app", *flags, "--metrics", "off") as address:
            for way in WAYS:
                run_id = way.replace(" ", "-")
                fill(address, run_id, options)
                with TimedClient(address, run_id=run_id) as client:
                    curriculum, step_s = train(way, client, options)
                found[way] = summary(curriculum.service_time_s, client.report_s, step_s)
    longest_ms = max(found[way]["prefetch"][1] for way in WAYS)
    found["share_of_a_second"] = round(longest_ms / 1e3 / STEP_S, 4)
    return found


def summary(
    waited_s: Sequence[float], report_s: Sequence[float], step_s: Sequence[float]
) -> dict[str, list[float]]:
    times: Times = defaultdict(list)
    for step in range(WARM_STEPS, len(waited_s)):
        times["prefetch" if is_prefetched(step) else "no prefetch"].append(waited_s[step])
        times["of it report"].append(report_s[step])
        times["whole step"].append(step_s[step])
    return {name: quartiles_ms(values) for name, values in times.items()}


def quartiles_ms(values_s: Sequence[float]) -> list[float]:
    return [round(1e3 * value, 1) for value in statistics.quantiles(values_s, method="inclusive")]


def show(found: dict[str, Any]) -> None:
    print(f"{'milliseconds in a step':28} {'quartile':>9} {'median':>9} {'quartile':>9}")
    for way in WAYS:
        for name, quartiles in found[way].items():
            print(f"{way + ', ' + name:28} " + " ".join(f"{value:9.1f}" for value in quartiles))
    print(json.dumps(found))


def options_for(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="32 prompts of 4 attempts, 4 steps")
    parser.add_argument("--prompts", type=int, default=512, help="of a step")
    parser.add_argument("--generations", type=int, default=8, help="of a prompt")
    parser.add_argument("--pool", type=int, default=20_000, help="prompts of the run")
    parser.add_argument("--steps", type=int, default=20, help="counted, of each way")
    options = parser.parse_args(arguments)
    if options.quick:
        options.prompts, options.generations, options.pool, options.steps = 32, 4, 500, 4
    return options


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    show(measure(options_for(sys.argv[1:])))
