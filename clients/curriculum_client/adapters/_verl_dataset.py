"""verl's own dataset, of a run's prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl.utils.dataset.rl_dataset import RLHFDataset

from curriculum_client import Feed, InvalidRequestError, ServedPrompt, StateError
from curriculum_client.adapters import _marks, _process

TRAIN_FILES = "curriculum"
"""What data.train_files is; any other name is a file."""


class Shared:
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
            self.dataframe = _Rows(make_feed(self.config), self.max_samples, self.prompt_key)
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
        return shared_feed().state_dict(rewind=Shared.trainer_mode == "sync")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, with the curriculum as it was there."""
        if self._is_served:
            shared_feed().load_state_dict(state)
            shared_feed().client.rollback(_marks.name(state["policy_step"]))


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


def make_feed(config: Any) -> Feed:
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
    if Shared.trainer_mode is None:
        raise StateError(
            "trainer.v1.sampler.custom_sampler.name: must be replay_buffer, of "
            "pkg://curriculum_client.adapters.verl; another one reports nothing"
        )
    Shared.feed = Feed(
        _process.client(),
        config.train_batch_size,
        rollout_budget=config.get("curriculum", {}).get("rollout_budget"),
        # An asynchronous trainer is ahead anyway, and its checkpoints hold what it took.
        prefetch=Shared.trainer_mode == "sync",
    )
    return Shared.feed


def shared_feed() -> Feed:
    """The train dataset's. Raises StateError where verl was not given that dataset."""
    if Shared.feed is None:
        raise StateError(
            "data.custom_cls.name: must be CurriculumDataset, of "
            "pkg://curriculum_client.adapters.verl, with data.train_files=curriculum"
        )
    return Shared.feed


def _reward_model(served: ServedPrompt) -> Mapping[str, Any]:
    if "reward_model" in served.payload:
        return dict(served.payload["reward_model"])
    if "answer" in served.payload:
        return {"style": "rule", "ground_truth": served.payload["answer"]}
    raise InvalidRequestError(
        f"payload of prompt {served.prompt_id!r}: must have reward_model or answer"
    )
