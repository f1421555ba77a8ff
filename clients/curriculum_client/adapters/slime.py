"""Trains with slime, or with its fork miles, on what the curriculum serves.

    python3 train.py ... --num-rollout 1000 --n-samples-per-prompt 8 \
        --data-source-path curriculum_client.adapters.slime.CurriculumDataSource \
        --rollout-all-samples-process-path curriculum_client.adapters.slime.report

CURRICULUM_RUN and the other variables of `TrainerClient.from_environment` go into the environment
of Ray's job. slime gives every prompt n_samples_per_prompt attempts, so create the run with that
group_size and with reach_attempt_factor 1. A prompt's payload becomes the sample's metadata, and
its entry --label-key the label.

Rewards come from the hook that is shown a rollout's every finished group, once, when the rollout
is over: a --dynamic-sampling-filter-path stays yours, and has not hidden the groups that are all
right or all wrong, as it has from --custom-reward-post-process-path. Evaluations do not come by.
Groups that an over-sampled rollout drops unfinished are given back to the pool; with
--partial-rollout they stay leased and are finished in the next one.

Resuming. Where slime saves, the curriculum is marked, and --load rolls it back. With train_async.py
a mark contains the rollout that was under way, which is made again with other prompts; partial
rollouts are not saved, here as in slime.

What it does not do: --num-epoch (the stream has no end), --buffer-filter-path, images, prompts
with tools, and rollout functions of your own that do not call the hook.

Policy steps are rollouts. Assumed, since slime is not on PyPI: that its hook and its Sample are
those of miles. Tried with miles-rl 0.0.2 on Python 3.11, its generate_rollout with a generate
function that needs no GPU; slime itself was only read.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from curriculum_client import Feed, InvalidRequestError, ServedPrompt, StateError
from curriculum_client.adapters import _process

LEASE = "curriculum_lease"
"""Where a sample's metadata keeps its lease."""

Group = list[Any]
"""The Samples of one prompt."""

_log = logging.getLogger("curriculum_client")


class CurriculumDataSource:
    """A run's prompts as slime's data source. To change what is made of a prompt, or what its
    reward is, override `prompt_of`, `label_of` and `reward_of`."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self._feed = Feed(
            _process.client(),
            args.over_sampling_batch_size or args.rollout_batch_size,
            attempts_per_prompt=args.n_samples_per_prompt,
        )
        self._sample = _sample_class()
        self._tokenizer: Any = None
        self._group_count = 0
        self._unfinished: dict[str, None] = {}  # leases whose group is out
        self._partial: list[Group] = []

    def get_samples(self, num_samples: int) -> list[Group]:
        """That many groups, those begun in the last rollout first."""
        begun = self._partial[:num_samples]
        del self._partial[:num_samples]
        fresh = islice(self._feed, num_samples - len(begun))
        return [*begun, *map(self._group_of, fresh)]

    def add_samples(self, samples: Sequence[Group]) -> None:
        """Take back groups of a partial rollout."""
        self._partial += samples

    def report(self, groups: Iterable[Group]) -> None:
        """Count a rollout's attempts, and give back what it did not finish."""
        attempts = [(_lease_of(attempt), attempt) for group in groups for attempt in group]
        leases = [lease for lease, _ in attempts]
        step = self._feed.policy_step
        self._feed.policy_step += 1  # of the batch that is asked for next
        self._feed.report(
            leases,
            [self.reward_of(attempt) for _, attempt in attempts],
            policy_step=step,
            token_counts=[attempt.response_length for _, attempt in attempts],
        )
        for lease in leases:
            self._unfinished.pop(lease, None)
        if not self.args.partial_rollout:
            dropped = [x for x in self._unfinished for _ in range(self.args.n_samples_per_prompt)]
            self._feed.settle(dropped, [False] * len(dropped))
            self._unfinished.clear()

    def save(self, rollout_id: int) -> None:
        """Mark the curriculum, and write where it stands beside slime's checkpoint."""
        state = {"feed": self._feed.state_dict(), "group_count": self._group_count}
        path = _path(self.args.save, rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(state), "utf-8")
        self._feed.client.checkpoint(_mark(rollout_id), self._feed.policy_step)

    def load(self, rollout_id: int | None = None) -> None:
        """Go on after that rollout; the curriculum starts anew where none was saved."""
        if self.args.load is None or rollout_id is None:
            return
        path = _path(self.args.load, rollout_id)
        if not path.exists():
            _log.info("state not found path=%s", path)
            self._feed.policy_step = rollout_id + 1
            return
        state = json.loads(path.read_text("utf-8"))
        self._feed.load_state_dict(state["feed"])
        self._group_count = state["group_count"]
        self._partial.clear()
        self._unfinished.clear()
        self._feed.client.rollback(_mark(rollout_id))

    def prompt_of(self, served: ServedPrompt) -> Any:
        """The text; with --apply-chat-template, as the user's message in the model's template."""
        if not self.args.apply_chat_template:
            return served.text
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            name = self.args.hf_checkpoint
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
            if template := self.args.chat_template_path:
                self._tokenizer.chat_template = Path(template).read_text("utf-8")
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": served.text}],
            tokenize=False,
            add_generation_prompt=True,
            **(self.args.apply_chat_template_kwargs or {}),
        )

    def label_of(self, served: ServedPrompt) -> Any:
        """The payload's entry --label-key."""
        return served.payload.get(self.args.label_key)

    def reward_of(self, attempt: Any) -> float | None:
        """Its reward, by --reward-key; None where it was aborted."""
        if attempt.reward is None or not self.args.reward_key:
            return attempt.reward  # type: ignore[no-any-return]
        return attempt.reward[self.args.reward_key]  # type: ignore[no-any-return]

    def _group_of(self, served: ServedPrompt) -> Group:
        count, first = self.args.n_samples_per_prompt, self._group_count
        sample = self._sample(
            group_index=first,
            prompt=self.prompt_of(served),
            label=self.label_of(served),
            metadata={**served.payload, "prompt_id": served.prompt_id, LEASE: served.lease},
        )
        group = [copy.deepcopy(sample) for _ in range(count)]
        for place, each in enumerate(group):
            each.index = first * count + place
        self._group_count += 1
        self._unfinished[served.lease] = None
        return group


def report(args: Any, all_samples: Iterable[Group], data_source: Any) -> None:
    """For --rollout-all-samples-process-path. slime passes the data source's `get_samples`.

    Raises:
        InvalidRequestError: The data source is not a CurriculumDataSource.
    """
    source = getattr(data_source, "__self__", data_source)
    if not isinstance(source, CurriculumDataSource):
        raise InvalidRequestError(
            f"data_source_path={type(source).__name__}: must be a CurriculumDataSource"
        )
    source.report(all_samples)


def _lease_of(attempt: Any) -> str:
    if isinstance(attempt, list):
        raise InvalidRequestError(
            f"custom_generate_function_path: gave {len(attempt)} samples for one attempt: "
            "must give one"
        )
    lease: str = attempt.metadata.get(LEASE, "")
    return lease


def _sample_class() -> Any:
    for library in ("slime", "miles"):
        try:
            return importlib.import_module(f"{library}.utils.types").Sample
        except ModuleNotFoundError as error:
            if not f"{library}.utils.types".startswith(error.name or "?"):
                raise
    raise StateError("slime: must be installed, or miles")


def _path(folder: str, rollout_id: int) -> Path:
    return Path(folder, "rollout", f"curriculum_state_dict_{rollout_id}.json")


def _mark(rollout_id: int) -> str:
    return f"rollout-{rollout_id}"
