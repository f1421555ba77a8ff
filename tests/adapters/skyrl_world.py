"""SkyRL's experiment, trainer, generator and gsm8k environment as they are, on a CPU: stand-ins for
the engine, which answers what a test tells it, and for the models, which learn nothing."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typing_extensions

if sys.version_info < (3, 12):  # what SkyRL declares is then all that pydantic misses
    typing.TypedDict = typing_extensions.TypedDict  # type: ignore[assignment]

from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.dataset import PromptDataset as PromptDataset
from skyrl.train.entrypoints.main_base import BasePPOExp
from skyrl.train.trainer import RayPPOTrainer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# The models' processes need flash_attn, which needs CUDA.
_WORKERS = "skyrl.backends.skyrl_train.workers.fsdp.fsdp_worker"
sys.modules[_WORKERS] = types.ModuleType(_WORKERS)
vars(sys.modules[_WORKERS]).update(CriticWorker=None, PolicyWorker=None, RefWorker=None)

Answer = Callable[[str, int], str]
"""What is answered to a prompt's text, at its n-th attempt since training began."""


def make_tokenizer(folder: Path) -> None:
    """A tokenizer of printable characters, where `AutoTokenizer` finds it."""
    characters = [*map(chr, range(32, 127)), "\n"]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)


class Engine:
    """An InferenceEngineInterface of known answers."""

    def __init__(self, tokenizer: Any, answer: Answer) -> None:
        self._tokenizer = tokenizer
        self._answer = answer
        self.asked: list[str] = []

    async def generate(self, engine_input: Any, **_: Any) -> dict[str, Any]:
        responses = []
        for prompt in engine_input["prompt_token_ids"]:
            text = self._tokenizer.decode(prompt).replace(" ", "")
            responses.append(self._answer(text, self.asked.count(text)))
            self.asked.append(text)
        ids = [self._tokenizer.encode(text) for text in responses]
        return {
            "responses": responses,
            "response_ids": ids,
            "stop_reasons": ["stop"] * len(ids),
            "response_logprobs": [[-1.0] * len(row) for row in ids],
        }

    async def finish_session(self, session_id: str) -> None: ...


class Dispatch:
    """In place of the models' processes."""

    def get_lcm_dp_size(self) -> int:
        return 1

    def get_timing_metrics(self) -> dict[str, float]:
        return {}

    async def save_weights_for_sampler(self) -> None: ...

    def save_checkpoint(self, model: str, folder: str, tokenizer: Any) -> None:
        Path(folder).mkdir(parents=True)

    def load_checkpoint(self, model: str, folder: str, **_: Any) -> None:
        assert Path(folder).exists()

    def finalize_pending_saves(self, model: str) -> None: ...


class Trainer(RayPPOTrainer):
    """The trainer without models: what would train is kept."""

    def build_models(self, *_: Any) -> None:
        self.dispatch = Dispatch()
        self.trained: list[list[str]] = []

    def init_weight_sync_state(self) -> None: ...

    def convert_to_training_input(self, generator_output: Any, uids: list[str]) -> Any:
        self.trained.append(list(uids))
        return super().convert_to_training_input(generator_output, uids)

    def fwd_logprobs_values_reward(self, training_input: Any) -> Any:
        training_input["values"] = None
        return training_input

    def train_critic_and_policy(self, data: Any) -> dict[str, float]:
        return {}

    def _cleanup_old_checkpoints(self) -> None: ...


class Tracker:
    """Takes what is logged."""

    def log(self, *_: Any, **__: Any) -> None: ...

    def log_exception(self, *_: Any, **__: Any) -> None: ...

    def finish(self) -> None: ...


class Experiment(BasePPOExp):
    """What a user has: an experiment that overrides the hooks that SkyRL documents."""

    answer: Answer

    def get_inference_client(self) -> Any:
        self.engine = Engine(self.tokenizer, self.answer)
        return self.engine

    def get_trainer(self, *args: Any, **kwargs: Any) -> Any:
        return Trainer(*args, **kwargs)

    def get_tracker(self) -> Any:
        return Tracker()


def configure(folder: Path, overrides: Sequence[str]) -> Any:
    """SkyRL's configuration of a small training."""
    if not (folder / "model").exists():
        make_tokenizer(folder / "model")
    return SkyRLTrainConfig.from_cli_overrides(
        [
            f"trainer.policy.model.path={folder / 'model'}",
            f"trainer.ckpt_path={folder / 'checkpoints'}",
            f"trainer.export_path={folder / 'exports'}",
            "trainer.placement.colocate_all=false",
            "generator.inference_engine.enable_ray_prometheus_stats=false",
            "trainer.enable_ray_gpu_monitor=false",
            "trainer.eval_interval=-1",
            "trainer.ckpt_interval=-1",
            "trainer.train_batch_size=4",
            "trainer.policy_mini_batch_size=4",
            "trainer.algorithm.advantage_estimator=grpo",
            "generator.n_samples_per_prompt=4",
            "generator.sampling_params.max_generate_length=32",
            "environment.env_class=gsm8k",
            *overrides,
        ]
    )
