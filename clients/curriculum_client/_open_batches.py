"""Batches of which something is still to be scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from curriculum_api.errors import InvalidRequestError
from curriculum_client._attempts import parse_lease
from curriculum_client._batch import Batch


@dataclass
class OpenBatch:
    """What is still to come of a batch."""

    batch: Batch
    unscored_count: int
    """Attempts that this process is still to score."""
    unspent_count: int = field(init=False)
    """Attempts that were allotted and not reported from here."""
    is_begun: bool = False
    """Whether a part of it was scored; until then it was only fetched ahead."""

    def __post_init__(self) -> None:
        self.unspent_count = sum(served.attempt_count for served in self.batch)


class OpenBatches:
    """The oldest first."""

    def __init__(self) -> None:
        self._by_id: dict[tuple[int, str], OpenBatch] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[OpenBatch]:
        return iter(self._by_id.values())

    def add(self, batch: Batch, unscored_count: int) -> None:
        """Begin to count."""
        self._by_id[batch.timeline, batch.batch_id] = OpenBatch(batch, unscored_count)

    def forget_oldest(self) -> None:
        """As if all of it had been scored."""
        del self._by_id[next(iter(self._by_id))]

    def clear(self) -> None:
        """Forget all."""
        self._by_id.clear()

    def settle(self, scored: Mapping[str, int], spent: Mapping[Any, int]) -> list[OpenBatch]:
        """Count attempts by their leases; the batches of which nothing more is to be scored."""
        for lease, count in scored.items():
            timeline, _, batch_id = parse_lease(lease)
            if entry := self._by_id.get((timeline, batch_id)):
                entry.is_begun = True
                entry.unscored_count -= count
                entry.unspent_count -= spent.get(lease, 0)
        ended = {key: entry for key, entry in self._by_id.items() if entry.unscored_count <= 0}
        for key in ended:
            del self._by_id[key]
        return list(ended.values())


def check_attempts(batch: Batch, least: int) -> None:
    """Raise unless every prompt is to get what the trainer makes anyway."""
    for served in batch:
        if served.attempt_count < least:
            raise InvalidRequestError(
                f"attempts_per_prompt={least}: prompt {served.prompt_id!r} is to get "
                f"{served.attempt_count}; the run's group_size must be {least}"
            )
