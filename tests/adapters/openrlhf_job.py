"""A training with OpenRLHF's arguments, as `python3 -m curriculum_client.adapters.openrlhf` is,
where stand-ins take the models' place: they learn nothing and keep what a checkpoint is of.

    python openrlhf_job.py FOLDER ARGUMENTS…
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from openrlhf.trainer import ppo_trainer, ppo_trainer_async
from openrlhf.trainer.ray import launcher
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from curriculum_client.adapters import openrlhf

FOLDER = Path(sys.argv.pop(1))


def make_tokenizer(folder: Path) -> None:
    """A tokenizer of printable characters."""
    names = ["<pad>", "<eos>", "<unk>", *map(chr, range(32, 127))]
    model = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


class Models:
    """In place of a RayActorGroup."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.states = FOLDER / "states.pt"

    def async_init_model_from_pretrained(self, *_: Any, **__: Any) -> list[Any]:
        return []

    def async_save_model(self) -> list[Any]:
        return []

    def async_run_method(self, method_name: str, **kwargs: Any) -> list[Any]:
        if method_name == "save_checkpoint":
            (FOLDER / "checkpoints/_actor").mkdir(parents=True, exist_ok=True)
            torch.save(kwargs["client_states"], self.states)
        if method_name == "get_checkpoint_states":
            return [ray.put(torch.load(self.states, weights_only=False))]
        return []


class Learning:
    """A step without the models' part; what would be learnt from is written down."""

    def train_step(self, rollout_samples: Any, global_step: int) -> Any:
        leases = [label.lease for sample in rollout_samples for label in sample.labels]
        with (FOLDER / "learnt.jsonl").open("a") as lines:
            lines.write(json.dumps({"step": global_step, "leases": leases}) + "\n")
        return {}, global_step + 1

    def broadcast_to_vllm(self) -> None: ...


def without_models(actor: Any) -> Any:
    """An actor class of OpenRLHF that learns nothing."""
    trainer = actor.__ray_metadata__.modified_class
    return ray.remote(type(trainer.__name__, (Learning, trainer), {}))


if __name__ == "__main__":
    if not (FOLDER / "model").exists():
        make_tokenizer(FOLDER / "model")
    launcher.RayActorGroup = Models
    ppo_trainer.PPOTrainer = without_models(ppo_trainer.PPOTrainer)
    ppo_trainer_async.TrainingActor = without_models(ppo_trainer_async.TrainingActor)
    ray.init(num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=True)
    openrlhf.main()
