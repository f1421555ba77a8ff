"""TRL's GRPOTrainer teaches a tiny transformer the last digit of sums, in a minute on a CPU.

    pip install '.[server,trl]'
    curriculum-server &
    python clients/examples/trl_grpo.py

Lines that end in `# curriculum` are what a training with TRL adds. Kill it and start it again: it
goes on from its newest checkpoint, and so does the curriculum. For another training name another
--run; `--strategy uniform` has prompts drawn blindly.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curriculum_client import TrainerClient  # curriculum

# isort: split
import grpc
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig

from curriculum_api.v1 import operator_service_pb2 as operator
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.prompt_pb2 import Prompt
from curriculum_api.v1.run_pb2 import RunConfig, SelectionConfig
from curriculum_client.adapters.trl import CurriculumGRPOTrainer  # curriculum

PROMPTS, GROUP_SIZE = 16, 8


def make_prompts() -> list[Prompt]:
    """Every sum of one, two or three digits: "7=", "2+9=", "4+4+8="."""
    prompts = []
    for terms in (1, 2, 3):
        for digits in itertools.product(range(10), repeat=terms):
            text, payload = "+".join(map(str, digits)) + "=", {"answer": str(sum(digits) % 10)}
            details = {"domain": f"{terms}-terms", "payload_json": json.dumps(payload)}
            prompts.append(Prompt(prompt_id=text, text=text, **details))
    return prompts


def create_run(server: str, run_id: str, strategy: str) -> None:
    """As `curriculum runs create` and `curriculum prompts add` do; nothing is done twice."""
    selection = SelectionConfig(strategy=strategy, group_size=GROUP_SIZE, reach_attempt_factor=1)
    with grpc.insecure_channel(server) as channel:
        stub, config = OperatorServiceStub(channel), RunConfig(selection=selection)
        stub.CreateRun(operator.CreateRunRequest(run_id=run_id, config=config))
        stub.AddPrompts(operator.AddPromptsRequest(run_id=run_id, prompts=make_prompts()))


def build_model() -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """80,000 parameters that know nothing, and a token for each character."""
    vocabulary = {piece: i for i, piece in enumerate(["<pad>", "<end>", *"0123456789+="])}
    characters = Tokenizer(models.WordLevel(vocabulary, "<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(vocabulary), **sizes, **heads, **ends)
    ), tokenizer


def right_digit(
    completions: Sequence[str], payload: Sequence[dict[str, Any]], **_: Any
) -> list[float]:
    return [float(c == p["answer"]) for c, p in zip(completions, payload, strict=True)]


def configure(steps: int, output_dir: Path) -> GRPOConfig:
    return GRPOConfig(
        str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * GROUP_SIZE,
        num_generations=GROUP_SIZE,
        max_completion_length=1,
        loss_type="dr_grpo",
        learning_rate=6e-4,
        adam_beta2=0.99,
        lr_scheduler_type="constant",
        beta=0.0,
        logging_steps=10,
        save_steps=50,
        save_total_limit=2,
        # For a model that is smaller than its overhead, on a CPU.
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--run", default="sums", help="made if it is not there")
    parser.add_argument("--strategy", default="edge", help="of the run: edge, thompson or uniform")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("out/trl"), help="for checkpoints")
    args = parser.parse_args()
    create_run(args.server, args.run, args.strategy)
    model, tokenizer = build_model()
    trainer = CurriculumGRPOTrainer(  # curriculum
        curriculum=TrainerClient(args.server, run_id=args.run),  # curriculum
        model=model,
        processing_class=tokenizer,
        reward_funcs=right_digit,
        args=configure(args.steps, args.out / args.run),
    )
    folder = args.out / args.run
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)


if __name__ == "__main__":
    main()
