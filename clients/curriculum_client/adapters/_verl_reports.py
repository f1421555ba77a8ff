"""What verl calls when attempts are made and when weights are saved, which also reports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transfer_queue
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from curriculum_client import InvalidRequestError, StateError
from curriculum_client._attempts import parse_lease
from curriculum_client.adapters import _marks
from curriculum_client.adapters._verl_dataset import Shared, shared_feed


class CurriculumReplayBuffer(ReplayBuffer):  # type: ignore[misc]
    """The synchronous trainer's, which also reports each group when it is done."""

    def __init__(self, *, sampler_kwargs: Mapping[str, Any], **arguments: Any) -> None:
        options = dict(sampler_kwargs)
        self._channels: list[str] = list(options.pop("channels", ()))
        self._reported: set[str] = set()
        if options.get("filter_groups_metric") and arguments["trainer_mode"] == "sync":
            options.setdefault("gen_batch_size", 1)  # as verl makes it for its own buffer
        super().__init__(sampler_kwargs=sampler_kwargs, **arguments, **options)
        self.train_batch_size: int | None = options.get("train_batch_size")
        Shared.trainer_mode, Shared.feed = arguments["trainer_mode"], None

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        if partition_id == "train":
            # What is asked for from now on is attempted by the weights that this step makes.
            shared_feed().policy_step = global_steps
            self.train_batch_size = self.train_batch_size or batch_size  # verl tells its own alone
        return super().sample(global_steps, partition_id, batch_size)

    def _sync_metadata_from_transfer_queue(self) -> None:
        """Whatever verl does with groups, it begins with this look at all that there are."""
        super()._sync_metadata_from_transfer_queue()
        done = self.finished_keys["train"] | self.failure_keys["train"]
        if new := done - self._reported:
            self._report(new)
        self._reported = done

    def _report(self, groups: set[str]) -> None:
        tags: dict[str, Any] = self.partitions["train"]
        # One key of each attempt: what a multi-turn one is cut into has one reward.
        keys, token_counts = {}, Counter[str]()
        for key, tag in tags.items():
            attempt, _, _ = key.rpartition("_")
            if key.partition("_")[0] in groups:
                keys[attempt] = key
                token_counts[attempt] += tag["response_len"]
        if not keys:
            return  # all attempts failed
        fields = ["rm_scores", "extra_info", *(["extra_fields"] if self._channels else [])]
        data = transfer_queue.kv_batch_get(list(keys.values()), "train", select_fields=fields)
        if "rm_scores" not in data.keys():  # noqa: SIM118 (a TensorDict contains no names)
            raise StateError(
                "reward.reward_model.enable_resource_pool=False: must be True; a colocated reward "
                "model scores attempts only after they were sampled"
            )
        feed = shared_feed()
        timeline = feed.client.timeline
        leases = [_current(info["lease"], timeline) for info in _plain(data, "extra_info")]
        feed.report(
            leases,
            [float(row.sum()) for row in data["rm_scores"]],
            policy_step=[tags[key]["max_global_steps"] for key in keys.values()],
            token_counts=[token_counts[attempt] for attempt in keys],
            channels=self._scores(data),
        )

    def _scores(self, data: Any) -> dict[str, list[float | None]]:
        """What the reward function returned of each channel."""
        if not self._channels:
            return {}
        scored = [extra["reward_extra_info"] for extra in _plain(data, "extra_fields")]
        return {name: [scores.get(name) for scores in scored] for name in self._channels}


class CurriculumReplayBufferAsync(CurriculumReplayBuffer, ReplayBufferAsync):  # type: ignore[misc]
    """The asynchronous trainers'."""


def replay_buffer(*, trainer_mode: str, **arguments: Any) -> ReplayBuffer:
    """The replay buffer of a mode of the trainer, which also reports."""
    kind = CurriculumReplayBuffer if trainer_mode == "sync" else CurriculumReplayBufferAsync
    return kind(trainer_mode=trainer_mode, **arguments)


class CurriculumCheckpoints(CheckpointCallback):  # type: ignore[misc]
    """Marks the curriculum with every checkpoint.

    Raises:
        InvalidRequestError: DAPO's filter is configured for verl's replay buffer alone.
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        options = config.trainer.v1.sampler.sampler_kwargs
        if config.algorithm.filter_groups.enable and "filter_groups_metric" not in options:
            raise InvalidRequestError(
                "trainer.v1.sampler.sampler_kwargs.filter_groups_metric: must be there where "
                "algorithm.filter_groups.enable=True; say '${algorithm.filter_groups.metric}'"
            )

    def on_save(
        self,
        trainer: Any,
        global_step: int,
        checkpoint_dir: str,
        async_save: bool = False,
        **_: Any,
    ) -> None:
        """Marks, lets go of marks whose checkpoints are gone, and says where the weights are."""
        client, folder = shared_feed().client, Path(checkpoint_dir).absolute()
        _marks.add(
            client,
            global_step,
            is_kept=lambda step: (folder.with_name(f"global_step_{step}") / "actor").exists(),
        )
        weights = folder / "actor" / "huggingface"
        if not async_save and any(weights.glob("*.safetensors")):
            client.publish_policy(global_step, str(weights))


def _current(lease: str, timeline: int | None) -> str | None:
    """None for what was in flight at a checkpoint: rolling back has freed its lease."""
    return lease if parse_lease(lease)[0] == timeline else None


def _plain(data: Any, name: str) -> list[Any]:
    """A column of objects, which the backends of the queue wrap or do not."""
    return [getattr(value, "data", value) for value in data[name]]
