"""Rewards as a trainer has them become the columns of a report."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import MAX_REPORT_ATTEMPTS
from curriculum_api.v1.batch_pb2 import ChannelValues, Outcomes
from curriculum_client._batch import Batch

PerPrompt = Mapping[Any, Iterable[Any] | None] | Sequence[Iterable[Any] | None]
"""The values of each prompt's attempts: by prompt_id, by slot, or in the batch's order.

A prompt without values, or with None, is not part of the report. Arrays and tensors will do.
"""

_MAX_FLOAT32 = 3.4028234663852886e38
MAX_U32 = 2**32 - 1

T = TypeVar("T", int, float)


def build_outcomes(
    batch: Batch,
    rewards: PerPrompt,
    *,
    token_counts: PerPrompt | None,
    channels: Mapping[str, PerPrompt] | None,
) -> list[Outcomes]:
    """Rows by slot, cut into pieces that the service takes; none when there are no attempts.

    Raises:
        InvalidRequestError: A prompt is not in the batch, a value is not a finite number, or a
            column has other attempts than `rewards`.
    """
    rewards_by_slot = _by_slot(batch, "rewards", rewards, to_float)
    lengths = {slot: len(values) for slot, values in rewards_by_slot.items()}
    slots = [slot for slot, length in lengths.items() for _ in range(length)]
    tokens: list[int] = []
    if token_counts is not None:
        tokens_by_slot = _by_slot(batch, "token_counts", token_counts, to_count)
        tokens = _column(batch, "token_counts", tokens_by_slot, lengths)
    named = {}
    for name, values in sorted((channels or {}).items()):
        field = f"channels[{name!r}]"
        by_slot = _by_slot(batch, field, values, to_float)
        named[name] = _column(batch, field, by_slot, lengths)
    return cut(slots, [reward for row in rewards_by_slot.values() for reward in row], tokens, named)


def cut(
    slots: Sequence[int],
    rewards: Sequence[float],
    tokens: Sequence[int],
    channels: Mapping[str, Sequence[float]],
) -> list[Outcomes]:
    """Columns of one row per attempt, in pieces that the service takes."""
    size = MAX_REPORT_ATTEMPTS
    return [
        Outcomes(
            slots=slots[first : first + size],
            rewards=rewards[first : first + size],
            token_counts=tokens[first : first + size],
            channels={
                name: ChannelValues(values=rows[first : first + size])
                for name, rows in channels.items()
            },
        )
        for first in range(0, len(slots), size)
    ]


def content_key(identity: Sequence[str | int], outcomes: Iterable[Outcomes]) -> str:
    """A digest of who reports what; equal reports have equal keys."""
    digest = hashlib.sha256(json.dumps(list(identity)).encode())
    for piece in outcomes:
        digest.update(piece.SerializeToString(deterministic=True))
    return digest.hexdigest()[:40]


def _by_slot(
    batch: Batch, field: str, values: PerPrompt, convert: Callable[[Any], T]
) -> dict[int, list[T]]:
    """Converted values by slot, in the order of slots, so that equal content has equal bytes."""
    if isinstance(values, Mapping):
        keyed = list(values.items())
    elif len(values) == len(batch):
        keyed = list(enumerate(values))
    else:
        raise InvalidRequestError(f"{field}: has {len(values)} entries for {len(batch)} prompts")
    found: dict[int, list[T]] = {}
    for key, row in keyed:
        slot = _slot(batch, field, key)
        if slot in found:
            raise InvalidRequestError(f"{field}[{key!r}]: the prompt is named twice")
        found[slot] = [] if row is None else converted(f"{field}[{key!r}]", row, convert)
    return {slot: found[slot] for slot in sorted(found) if found[slot]}


def _slot(batch: Batch, field: str, key: Any) -> int:
    if isinstance(key, str):
        slot = batch.slots.get(key)
        if slot is not None:
            return slot
    else:
        try:
            slot = operator.index(key)
        except TypeError:
            slot = -1
        if 0 <= slot < len(batch):
            return slot
    raise InvalidRequestError(f"{field}[{key!r}]: not a prompt of batch {batch.batch_id!r}")


def converted(field: str, row: Iterable[Any], convert: Callable[[Any], T]) -> list[T]:
    """A row's values, each converted.

    Raises:
        InvalidRequestError: Naming the field and the attempt.
    """
    # One transfer for a tensor on a device, where iterating would make one for each element.
    values = row.tolist() if hasattr(row, "tolist") else row
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidRequestError(f"{field}={values!r}: must be a sequence, one value per attempt")
    found = []
    for attempt, value in enumerate(values):
        try:
            found.append(convert(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequestError(f"{field}[{attempt}]={value!r}: {error}") from None
    return found


def to_float(value: Any) -> float:
    """A number that a report may carry."""
    number = float(value)
    if not -_MAX_FLOAT32 <= number <= _MAX_FLOAT32:  # also false for NaN
        raise ValueError("must be finite, as float32")
    return number


def to_count(value: Any) -> int:
    """A count that a report may carry."""
    number = operator.index(value)
    if not 0 <= number <= MAX_U32:
        raise ValueError(f"must be in [0, {MAX_U32}]")
    return number


def _column(
    batch: Batch, field: str, by_slot: dict[int, list[T]], lengths: Mapping[int, int]
) -> list[T]:
    for slot in lengths.keys() | by_slot.keys():
        count = len(by_slot.get(slot, ()))
        if count != lengths.get(slot, 0):
            raise InvalidRequestError(
                f"{field}[{batch[slot].prompt_id!r}]: has {count} values for "
                f"{lengths.get(slot, 0)} rewards"
            )
    return [value for values in by_slot.values() for value in values]
