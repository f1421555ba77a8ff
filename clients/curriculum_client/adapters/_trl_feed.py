"""A run's prompts as TRL's rows, and the rewards of its reward functions back."""

from __future__ import annotations

import functools
import inspect
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
import trl
from accelerate import PartialState
from datasets import IterableDataset
from packaging.version import Version

from curriculum_client import Feed, InvalidRequestError, ServedPrompt, StateError, TrainerClient
from curriculum_client.adapters._trl_callback import CurriculumCallback, Publish

Reward = Callable[..., list[float | None]]
"""A reward function as TRL calls it; None leaves a completion out."""

ToPrompt = Callable[[ServedPrompt], Any]
"""Makes TRL's prompt of a served one: a string or a list of messages."""

TEXT: ToPrompt = operator.attrgetter("text")


class CurriculumFeed:
    """Carries a run's prompts into GRPOTrainer, and their rewards back.

    Args:
        client: Connected to the run. One in each training process, all of the same consumer.
        to_prompt: Makes TRL's prompt of a served one: a string or a list of messages.
    """

    def __init__(self, client: TrainerClient, *, to_prompt: ToPrompt = TEXT) -> None:
        self.client = client
        self.service_time_s: list[float] = []
        """Seconds that each finished step waited for the service."""
        self._to_prompt = to_prompt
        self._feed: Feed | None = None
        self._is_stream = False

    def arguments(
        self,
        score: Reward,
        *,
        channels: Mapping[str, Reward] | None = None,
        checkpoint: bool = True,
        publish: Publish = False,
    ) -> dict[str, Any]:
        """GRPOTrainer's train_dataset, reward_funcs and callbacks: the three methods below."""
        return {
            "train_dataset": self.dataset(),
            "reward_funcs": self.reward(score, channels=channels),
            "callbacks": [self.callback(checkpoint=checkpoint, publish=publish)],
        }

    def dataset(self) -> IterableDataset:
        """An endless train_dataset of the columns prompt, prompt_id, domain, payload and lease.

        Raises:
            StateError: This TRL takes none.
        """
        if Version(trl.__version__) < Version("1.9.0"):
            raise StateError(
                f"trl=={trl.__version__}: takes an IterableDataset from 1.9.0 on; "
                "use CurriculumGRPOTrainer"
            )
        self._is_stream = True
        return IterableDataset.from_generator(self._rows)

    def reward(self, score: Reward, *, channels: Mapping[str, Reward] | None = None) -> Reward:
        """The plain function `score`, with its rewards for served prompts reported as well.

        Of several reward functions, wrap one. `channels` are functions of the same kind by the
        names of channels of the run: what they give is reported with the rewards, and TRL does not
        see it. Training ends at the first report with an InvalidRequestError where one is missing
        that the run's objective names.
        """
        if isinstance(score, str | torch.nn.Module) or inspect.iscoroutinefunction(score):
            raise InvalidRequestError(
                f"score={score!r}: must be a plain function; CurriculumGRPOTrainer takes others"
            )
        extra = channels or {}

        @functools.wraps(score)
        def scored(**columns: Any) -> list[float | None]:
            rewards = score(**columns)
            if "lease" in columns:  # rows of an eval_dataset have none
                leases, given = columns["lease"], {n: f(**columns) for n, f in extra.items()}
                step = columns["trainer_state"].global_step
                self.report(leases, rewards, given, columns["completion_ids"], step)
                self.feed.settle(leases, are_spent(rewards, given))
            return rewards

        return scored

    def callback(self, *, checkpoint: bool = True, publish: Publish = False) -> CurriculumCallback:
        """Follows the trainer's steps, and at the end gives back what was not attempted.

        With `checkpoint`, a saved checkpoint also marks the curriculum, and a training that is
        resumed from it first rolls the curriculum back to the mark and then gets the batches that
        the first one got. With save_total_limit, marks go with the checkpoints that TRL deletes.

        With `publish`, probers are told to load the weights of each checkpoint: its folder by its
        absolute path, or what `publish(folder)` gives. It is off unless you say that probers can
        read the folder, and that it holds whole weights, which it does not with PEFT.
        """
        return CurriculumCallback(self, checkpoint=checkpoint, publish=publish)

    @property
    def feed(self) -> Feed:
        """Of the training under way.

        Raises:
            StateError: None is.
        """
        if self._feed is None:
            raise StateError("GRPOTrainer(callbacks=...): must contain feed.callback()")
        return self._feed

    def begin(self, args: Any, step: int) -> Feed:
        """Start the feed; the callback does this when training begins.

        Raises:
            InvalidRequestError: TRL would read far ahead, or hide what its rows are of.
        """
        reporter_count = 1  # just in time, every rank knows what all have scored
        if self._is_stream:
            _check_stream(args, step)
            reporter_count = PartialState().num_processes
        if self._feed is not None:  # of a training that was interrupted
            self._feed.close(ranks_ended=True)
        self._feed = Feed(
            self.client,
            args.generation_batch_size // args.num_generations,
            attempts_per_prompt=args.num_generations,
            reporter_count=reporter_count,
        )
        self._feed.policy_step = step
        return self._feed

    def take(self, prompt_count: int) -> list[ServedPrompt]:
        """The next prompts, of as many batches as it takes where the pool runs dry."""
        return list(islice(self.feed, prompt_count))

    def row(self, served: ServedPrompt) -> dict[str, Any]:
        """A prompt as TRL's rows have it."""
        return {
            "prompt": self._to_prompt(served),
            "prompt_id": served.prompt_id,
            "domain": served.domain,
            "payload": served.payload,
            "lease": served.lease,
        }

    def report(
        self,
        leases: Sequence[str],
        rewards: Sequence[float | None],
        channels: Mapping[str, Sequence[float | None]],
        completion_ids: Sequence[Sequence[int]],
        policy_step: int,
    ) -> None:
        """Count what this rank scored, and wait until every rank has.

        Whoever settles after that asks for the next batch, so that its choice knows all reports
        and is the same when a resumed training asks for it again.
        """
        started_s = time.perf_counter()
        self.client.report_attempts(
            leases,
            rewards,
            policy_step=policy_step,
            token_counts=[len(ids) for ids in completion_ids],
            channels=channels,
        )
        self.feed.waited_s += time.perf_counter() - started_s
        self.feed.policy_step = policy_step
        PartialState().wait_for_everyone()

    def _rows(self) -> Iterator[dict[str, Any]]:
        return map(self.row, self.feed)


def are_spent(
    rewards: Sequence[float | None], channels: Mapping[str, Sequence[float | None]]
) -> list[bool]:
    """Which attempts were reported; those without a value in each column were not."""
    return [None not in values for values in zip(rewards, *channels.values(), strict=True)]


def _check_stream(args: Any, step: int) -> None:
    needs = [
        ("shuffle_dataset", False, "it reads far ahead"),
        ("remove_unused_columns", False, "rewards need the columns"),
    ]
    if step:
        needs.append(("ignore_data_skip", True, "to resume"))
    for name, wanted, reason in needs:
        if getattr(args, name) != wanted:
            raise InvalidRequestError(f"{name}={not wanted}: must be {wanted}: {reason}")
