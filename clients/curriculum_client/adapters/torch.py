"""A run's prompts as a PyTorch dataset, and as one of Hugging Face.

    feed = Feed(TrainerClient("localhost:50051", run_id="math"), prompt_count=64)
    dataset = CurriculumDataset(feed, whole_batches=True)
    for step, batch in enumerate(DataLoader(dataset, batch_size=None)):
        rewards = ...  # batch["attempt_count"][i] at batch["prompt"][i], one after the other
        leases = ...  # of each reward, batch["lease"][i]
        dataset.report(leases, rewards, policy_step=step)

The stream has no end. It needs no workers: rewards come back to the process that asks, which
fetches a batch ahead while the trainer learns. So a DataLoader's num_workers must be 0.

Ranks, of one `consumer`: each takes its share of every batch with `Feed(rank=..., world_size=...)`;
or each goes through everything and picks its rows, as Hugging Face's split_dataset_by_node does and
trainers that dispatch rows do, with `Feed(reporter_count=...)`.

Resuming: torchdata's StatefulDataLoader saves and loads the dataset's position with its own; else
keep `state_dict()` in the trainer's checkpoint. Then `client.rollback` to what `client.checkpoint`
marked. A batch that was fetched and of which nothing was reported comes again; what was left of one
that was begun does not. Positions of Hugging Face's dataset itself are no use: it would skip rows.

Tried with torch 2.13.0, datasets 5.2.0 and torchdata 0.11.0 on Python 3.11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from curriculum_client import Feed, InvalidRequestError, Receipt, ServedPrompt
from curriculum_client._attempts import PerAttempt

Row = dict[str, Any]


def to_row(served: ServedPrompt) -> Row:
    """What a training needs of a prompt."""
    return {
        "prompt": served.text,
        "prompt_id": served.prompt_id,
        "domain": served.domain,
        "payload": served.payload,
        "attempt_count": served.attempt_count,
        "lease": served.lease,
    }


def collate(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Columns of rows, nothing made a tensor: PyTorch's own refuses payloads of different keys."""
    return {name: [row[name] for row in rows] for name in rows[0]}


class CurriculumDataset(IterableDataset[Row]):
    """What a feed gives, row by row; all iterators share one position.

    A DataLoader that cuts batches of its own takes `collate_fn=collate`. Where the pool runs dry,
    its batches and the service's drift apart, and it waits for prompts that are in its own hands.

    Args:
        feed: Whose prompts these are.
        to_row: Makes the row of a prompt. Keep the lease in it.
        whole_batches: Whether to give each batch, or this rank's share of it, as one dictionary of
            columns, for `DataLoader(batch_size=None)`.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        to_row: Callable[[ServedPrompt], Row] = to_row,
        whole_batches: bool = False,
    ) -> None:
        self.feed = feed
        self._to_row = to_row
        self._whole_batches = whole_batches

    def __iter__(self) -> Iterator[Row]:
        """Raises InvalidRequestError in a DataLoader's worker, and whatever `Feed` raises."""
        if (worker := get_worker_info()) is not None:
            raise InvalidRequestError(
                f"num_workers={worker.num_workers}: must be 0: each worker would give the prompts "
                "of a feed of its own, the same ones, and would see no rewards"
            )
        if self._whole_batches:
            while True:
                yield collate([self._to_row(served) for served in self.feed.next_batch()])
        for served in self.feed:
            yield self._to_row(served)

    def report(
        self, leases: Sequence[str | None], rewards: PerAttempt, **options: Any
    ) -> Receipt | None:
        """Count attempts; see `Feed.report` for the options."""
        return self.feed.report(leases, rewards, **options)

    @property
    def policy_step(self) -> int:
        """What the next batch is asked for: the newest step reported, or whatever is set here."""
        return self.feed.policy_step

    @policy_step.setter
    def policy_step(self, step: int) -> None:
        self.feed.policy_step = step

    def state_dict(self) -> dict[str, Any]:
        """The feed's."""
        return self.feed.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The feed's."""
        self.feed.load_state_dict(state)

    def huggingface(self) -> Any:
        """The same stream as a `datasets.IterableDataset`, for trainers that want one."""
        from datasets import IterableDataset as HuggingFaceDataset

        return HuggingFaceDataset.from_generator(self.__iter__)
