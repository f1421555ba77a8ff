"""Trains with verl 0.9 or newer on what the curriculum serves. Start it through this module,

    export CURRICULUM_RUN=math CURRICULUM_SERVER=localhost:50051
    python -m curriculum_client.adapters.verl data.train_max_samples=102400 ...

for verl.trainer.main_ppo, with verl's own overrides. It adds `OVERRIDES`: where they go into a
configuration of yours, start that as ever.

Prompts. data.val_files are read as ever. An epoch has data.train_max_samples prompts. The payload
may hold what a row of verl's files does: messages (else the text is the user's), data_source (else
it is the domain), reward_model (else its ground truth is the payload's answer) and extra_info. Each
prompt gets the attempts it was allotted: give the run rollout.n as its group_size, by which verl
sizes its mini-batches, and reach_attempt_factor 1; or the service spreads so many over a batch:

    +data.curriculum.rollout_budget=8192

Rewards. Attempts are reported as soon as their group is done, before verl filters groups or drops
stale ones, as made by the newest weights that took part. Where the run's objective names channels,
the reward function returns them beside its score, and

    +trainer.v1.sampler.sampler_kwargs.channels=[explanation]

names them. verl leaves DAPO's filter to whoever brings a sampler. This one does it too, where it is
told; other arguments of verl's ReplayBuffer are given likewise:

    +trainer.v1.sampler.sampler_kwargs.filter_groups_metric='${algorithm.filter_groups.metric}'

Checkpoints. A checkpoint marks the curriculum, and verl's resuming rolls it back to the mark. Where
checkpoints hold "hf_model", probers learn where the weights are. The asynchronous trainers keep the
prompts in flight in their checkpoints and finish them after resuming; those are not counted.

Tried with verl 0.9.1 on Python 3.11 and, in place of the GPUs, a generator of fixed answers.
"""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transfer_queue
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.utils.dataset.rl_dataset import RLHFDataset

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_client import Feed, ServedPrompt
from curriculum_client._attempts import parse_lease
from curriculum_client.adapters import _process

MODULE = "curriculum_client.adapters.verl"

TRAIN_FILES = "curriculum"
"""What data.train_files is; any other name is a file."""


OVERRIDES = (
    f"data.train_files={TRAIN_FILES}",
    "data.dataloader_num_workers=0",
    f"data.custom_cls.path=pkg://{MODULE}",
    "data.custom_cls.name=CurriculumDataset",
    f"trainer.v1.sampler.custom_sampler.path=pkg://{MODULE}",
    "trainer.v1.sampler.custom_sampler.name=replay_buffer",
    f"trainer.checkpoint_callback_class={MODULE}.CurriculumCheckpoints",
)
"""What puts the curriculum into verl's configuration."""


class _Shared:
    """What verl builds in one process, one after the other, and gives no way to meet."""

    trainer_mode: str | None = None
    feed: Feed | None = None


class CurriculumDataset(RLHFDataset):  # type: ignore[misc]
    """verl's own dataset, for `data.train_files=curriculum` over the prompts that are served.

    Raises:
        InvalidRequestError: The configuration does not go with a stream of prompts.
        StateError: verl was not given the replay buffer, so nothing would be reported.
    """

    def _download(self, use_origin_parquet: bool = False) -> None:
        if not self._is_served:
            super()._download(use_origin_parquet)

    def _read_files_and_tokenize(self) -> None:
        if self._is_served:
            self.dataframe = _Rows(_make_feed(self.config), self.max_samples, self.prompt_key)
        else:
            super()._read_files_and_tokenize()

    @property
    def _is_served(self) -> bool:
        return list(self.original_data_files) == [TRAIN_FILES]

    def state_dict(self) -> dict[str, Any]:
        """Where a resumed training goes on; verl's dataloader keeps it in data.pt."""
        if not self._is_served:
            return {}
        # What an asynchronous trainer has in flight is in its own checkpoint: not to come twice.
        return _feed().state_dict(rewind=_Shared.trainer_mode == "sync")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, with the curriculum as it was there."""
        if self._is_served:
            _feed().load_state_dict(state)
            _feed().client.rollback(_mark(state["policy_step"]))


class _Rows:
    """In place of the rows of a file: whichever is wanted, the next prompt."""

    def __init__(self, feed: Feed, length: int, prompt_key: str) -> None:
        self._prompts: Iterator[ServedPrompt] = iter(feed)
        self._length = length
        self._prompt_key = prompt_key

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, _index: int) -> dict[str, Any]:
        served = next(self._prompts)
        payload = served.payload
        text = [{"role": "user", "content": served.text}]
        named = {"index": served.slot, **payload.get("extra_info", {})}
        return {
            self._prompt_key: payload.get("messages", text),
            "data_source": payload.get("data_source", served.domain),
            "reward_model": _reward_model(served),
            "extra_info": {**named, "lease": served.lease, "prompt_id": served.prompt_id},
            "__rollout_n__": served.attempt_count,
        }


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
        _Shared.trainer_mode, _Shared.feed = arguments["trainer_mode"], None

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        if partition_id == "train":
            # What is asked for from now on is attempted by the weights that this step makes.
            _feed().policy_step = global_steps
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
        feed = _feed()
        timeline = feed.client.timeline
        leases = [_current(info["lease"], timeline) for info in _plain(data, "extra_info")]
        feed.client.report_attempts(
            leases,
            [float(row.sum()) for row in data["rm_scores"]],
            policy_step=[tags[key]["max_global_steps"] for key in keys.values()],
            token_counts=[token_counts[attempt] for attempt in keys],
            channels=self._scores(data),
        )
        feed.settle(leases)

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
        client, folder = _feed().client, Path(checkpoint_dir).absolute()
        kept = client.checkpoint(_mark(global_step), policy_step=global_step)
        for name, step in kept.items():
            is_there = (folder.with_name(f"global_step_{step}") / "actor").exists()
            if name == _mark(step) != _mark(global_step) and not is_there:
                client.delete_checkpoint(name)
        weights = folder / "actor" / "huggingface"
        if not async_save and any(weights.glob("*.safetensors")):
            client.publish_policy(global_step, str(weights))


def _make_feed(config: Any) -> Feed:
    """The train dataset's, of verl's `data`."""
    if (workers := config.dataloader_num_workers) != 0:
        raise InvalidRequestError(
            f"data.dataloader_num_workers={workers}: must be 0: each worker would be served apart"
        )
    if (length := config.train_max_samples) < config.train_batch_size:
        raise InvalidRequestError(
            f"data.train_max_samples={length}: must say how many prompts an epoch has, at least "
            f"data.train_batch_size={config.train_batch_size}: the curriculum has no end"
        )
    if _Shared.trainer_mode is None:
        raise StateError(
            "trainer.v1.sampler.custom_sampler.name: must be replay_buffer, of "
            "pkg://curriculum_client.adapters.verl; another one reports nothing"
        )
    _Shared.feed = Feed(
        _process.client(),
        config.train_batch_size,
        rollout_budget=config.get("curriculum", {}).get("rollout_budget"),
        # An asynchronous trainer is ahead anyway, and its checkpoints hold what it took.
        prefetch=_Shared.trainer_mode == "sync",
    )
    return _Shared.feed


def _feed() -> Feed:
    if _Shared.feed is None:
        raise StateError(
            "data.custom_cls.name: must be CurriculumDataset, of "
            "pkg://curriculum_client.adapters.verl, with data.train_files=curriculum"
        )
    return _Shared.feed


def _reward_model(served: ServedPrompt) -> Mapping[str, Any]:
    if "reward_model" in served.payload:
        return dict(served.payload["reward_model"])
    if "answer" in served.payload:
        return {"style": "rule", "ground_truth": served.payload["answer"]}
    raise InvalidRequestError(
        f"payload of prompt {served.prompt_id!r}: must have reward_model or answer"
    )


def _current(lease: str, timeline: int | None) -> str | None:
    """None for what was in flight at a checkpoint: rolling back has freed its lease."""
    return lease if parse_lease(lease)[0] == timeline else None


def _plain(data: Any, name: str) -> list[Any]:
    """A column of objects, which the backends of the queue wrap or do not."""
    return [getattr(value, "data", value) for value in data[name]]


def _mark(step: int) -> str:
    return f"step-{step}"


if __name__ == "__main__":
    sys.argv += OVERRIDES
    runpy.run_module("verl.trainer.main_ppo", run_name="__main__", alter_sys=True)
