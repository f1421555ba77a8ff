"""Attempts one by one, each with its prompt's lease, become the columns of reports."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from curriculum_api.errors import InvalidRequestError
from curriculum_api.v1.batch_pb2 import Outcomes
from curriculum_client._checks import check_policy_step
from curriculum_client._outcomes import converted, cut, to_count, to_float

PerAttempt = Iterable[Any]
"""One value for each attempt. Arrays and tensors will do."""

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Origin:
    """The batch that attempts are of, and the step whose weights made them."""

    timeline: int
    batch_id: str
    policy_step: int


def parse_lease(lease: Any) -> tuple[int, int, str]:
    """Timeline, slot and batch_id of a `ServedPrompt.lease`.

    Raises:
        InvalidRequestError: It is none.
    """
    try:
        timeline, slot, batch_id = lease.split(".", 2)
        if batch_id:
            return int(timeline), int(slot), batch_id
    except (AttributeError, ValueError):
        pass
    raise InvalidRequestError(f"leases: {lease!r}: must be the lease of a served prompt")


def group_attempts(
    leases: Sequence[str | None],
    rewards: PerAttempt,
    *,
    policy_step: int | Sequence[int],
    token_counts: PerAttempt | None,
    channels: Mapping[str, PerAttempt] | None,
) -> dict[Origin, list[Outcomes]]:
    """The attempts that have a lease and values, by origin, in the order of their slots.

    Raises:
        InvalidRequestError: A column is of another length, or a value is not allowed.
    """
    columns = {"rewards": _column("rewards", leases, rewards, to_float)}
    if token_counts is not None:
        columns["token_counts"] = _column("token_counts", leases, token_counts, to_count)
    for name, values in sorted((channels or {}).items()):
        columns[f"channels.{name}"] = _column(f"channels[{name!r}]", leases, values, to_float)
    steps = _steps(leases, policy_step)
    rows_by_lease: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row, values in enumerate(zip(*columns.values(), strict=True)):
        if (lease := leases[row]) and None not in values:
            rows_by_lease[lease, steps[row]].append(row)
    rows_by_slot: dict[Origin, dict[int, list[int]]] = defaultdict(dict)
    for (lease, step), rows in rows_by_lease.items():
        timeline, slot, batch_id = parse_lease(lease)
        rows_by_slot[Origin(timeline, batch_id, step)].setdefault(slot, []).extend(rows)
    return {origin: _outcomes(rows, columns) for origin, rows in rows_by_slot.items()}


def _outcomes(
    rows_by_slot: Mapping[int, Sequence[int]], columns: Mapping[str, Sequence[Any]]
) -> list[Outcomes]:
    slots = sorted(rows_by_slot)
    rows = [row for slot in slots for row in rows_by_slot[slot]]
    picked = {name: [column[row] for row in rows] for name, column in columns.items()}
    return cut(
        [slot for slot in slots for _ in rows_by_slot[slot]],
        picked.pop("rewards"),
        picked.pop("token_counts", ()),
        {name.removeprefix("channels."): values for name, values in picked.items()},
    )


def _column(
    field: str, leases: Sequence[str | None], values: PerAttempt, convert: Callable[[Any], T]
) -> list[T | None]:
    def optional(value: Any) -> Any:
        return None if value is None else convert(value)

    column: list[T | None] = converted(field, values, optional)
    if len(column) != len(leases):
        raise InvalidRequestError(f"{field}: has {len(column)} values for {len(leases)} leases")
    return column


def _steps(leases: Sequence[str | None], policy_step: int | Sequence[int]) -> Sequence[int]:
    if isinstance(policy_step, int):
        steps = [policy_step] * len(leases)
    else:
        steps = converted("policy_step", policy_step, operator.index)
        if len(steps) != len(leases):
            raise InvalidRequestError(
                f"policy_step: has {len(steps)} values for {len(leases)} leases"
            )
    for step in set(steps):
        check_policy_step(step)
    return steps
