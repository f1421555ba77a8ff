"""verl's trainer on a CPU: everything of verl's own but the models and what generates.

verl's configuration, dataloader, TransferQueue, agent loops, reward workers, replay buffer and
training loop run as they are. In place of an engine there is an actor that answers sums, some
always right, some always wrong and some in turns, and in place of the workers that hold the models
a stub that writes files.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import transfer_queue as tq
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, PreTrainedTokenizerFast
from verl.experimental.reward_loop import RewardLoopManager
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.rollout.replica import TokenOutput

CHARACTERS = [chr(code) for code in range(32, 127)]
REWARDS = Path(__file__).with_name("verl_reward.py")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def make_model(folder: Path) -> str:
    """A folder with a configuration and a tokenizer of characters."""
    names = ["<pad>", "<eos>", *CHARACTERS]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(names), **sizes, **heads)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return str(folder)


@ray.remote(num_cpus=0)
class Engine:
    """Sums i + i: right where i % 3 is 0, wrong where it is 1, else right every second time.

    The first `failure_count` attempts at the prompt whose i is `broken` raise.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self, broken: int | None = None, failure_count: int = 0) -> None:
        """Begin anew."""
        self.step = 0
        self.broken = broken
        self.failure_count = failure_count
        self.counts: dict[int, int] = defaultdict(int)

    def load(self, step: int) -> None:
        self.step = step

    def attempt(self, i: int) -> tuple[str, int]:
        self.counts[i] += 1
        if i == self.broken and self.counts[i] <= self.failure_count:
            raise RuntimeError("the engine has a bad day")
        is_right = i % 3 == 0 or (i % 3 == 2 and self.counts[i] % 2 == 0)
        return str(2 * i + (not is_right)), self.step

    def attempt_counts(self) -> dict[int, int]:
        return dict(self.counts)


class Client:
    """What verl's agent loops ask for tokens."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    async def generate(self, request_id: str, *, prompt_ids: list[int], **_: Any) -> TokenOutput:
        text = "".join(CHARACTERS[code - 2] for code in prompt_ids)
        answer, step = await self.engine.attempt.remote(int(text.split()[2]))
        return TokenOutput(
            token_ids=[CHARACTERS.index(character) + 2 for character in answer],
            stop_reason="completed",
            extra_fields=dict.fromkeys(
                ["global_steps", "min_global_steps", "max_global_steps"], step
            ),
        )


class Workers:
    """In place of those that hold the models: checkpoints are folders with files."""

    def save_checkpoint(self, folder: str, *_: Any, **__: Any) -> None:
        weights = Path(folder) / "huggingface"
        weights.mkdir(parents=True)
        (weights / "model.safetensors").touch()

    def load_checkpoint(self, local_path: str, **_: Any) -> None:
        assert Path(local_path).exists()


class Replicas:
    """In place of the checkpoint engine: the engine learns which weights it has."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def update_weights(self, step: int) -> None:
        ray.get(self.engine.load.remote(step))

    def sleep_replicas(self) -> None: ...
    def abort_replicas(self) -> None: ...
    def resume_generation_replicas(self) -> None: ...


@dataclass
class Actors:
    """Ray's, which every trainer may use: they take seconds to start."""

    engine: Any
    rewards: RewardLoopManager
    loops: AgentLoopManagerTQ

    @classmethod
    def start(cls, config: Any) -> Actors:
        engine, rewards = Engine.remote(), RewardLoopManager(config)
        loops = AgentLoopManagerTQ.create(
            config=config,
            llm_client=Client(engine),
            reward_loop_worker_handles=rewards.reward_loop_worker_handles,
        )
        return cls(engine, rewards, loops)

    def attempt_counts(self) -> dict[int, int]:
        """Of each prompt that there were attempts at."""
        counts: dict[int, int] = ray.get(self.engine.attempt_counts.remote())
        return counts


class _OnCpu:
    """Over a trainer of verl's."""

    actors: Actors

    def _setup(self: Any) -> None:
        self._init_tokenizer()
        self._init_dataloader()
        self._init_dump_executor()
        self.actor_rollout_wg = Workers()
        self.checkpoint_manager = Replicas(self.actors.engine)
        self.reward_loop_manager = self.actors.rewards
        self.trained: list[list[str]] = []
        """The prompt of each attempt, by step."""
        self.tags: list[dict[str, Any]] = []
        self._load_checkpoint()

    def _same(self, batch: Any, metrics: Any) -> Any:
        return batch

    _balance_batch = _compute_old_log_prob = _compute_advantage = _update_actor = _same

    def _compute_metrics(self: Any, batch: Any, *_: Any, **__: Any) -> None:
        data = tq.kv_batch_get(batch.keys, batch.partition_id, select_fields=["extra_info"])
        infos = [getattr(info, "data", info) for info in data["extra_info"]]
        self.trained.append([info["prompt_id"] for info in infos])
        self.tags.extend(batch.tags)


class SyncTrainer(_OnCpu, PPOTrainerSync): ...


class AsyncTrainer(_OnCpu, PPOTrainerColocateAsync): ...
