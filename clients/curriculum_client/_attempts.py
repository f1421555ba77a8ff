"""Attempts one by one, each with its prompt's lease, become the columns of reports."""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import MAX_BATCH_PROMPTS
from curriculum_api.v1.batch_pb2 import Outcomes
from curriculum_client._checks import check_policy_step
from curriculum_client._outcomes import MAX_U32, converted, cut, to_count, to_float

PerAttempt = Iterable[Any]
"""One value for each attempt. Arrays and tensors will do."""

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Origin:
    """The batch that attempts are of, and the step whose weights made them."""

    timeline: int
    batch_id: str
    policy_step: int


_LEASE = re.compile(r"(\d{1,10})\.(\d{1,4})\.(.+)", re.ASCII | re.DOTALL)


def parse_lease(lease: Any) -> tuple[int, int, str]:
    """Timeline, slot and batch_id of a `ServedPrompt.lease`.

    Raises:
        InvalidRequestError: It is none.
    """
    found = _LEASE.fullmatch(lease) if isinstance(lease, str) else None
    if found is None or int(found[1]) > MAX_U32 or int(found[2]) >= MAX_BATCH_PROMPTS:
        raise _no_lease(lease)
    return int(found[1]), int(found[2]), found[3]


def _no_lease(lease: Any) -> InvalidRequestError:
    return InvalidRequestError(f"leases: {lease!r}: must be the lease of a served prompt")


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
            if not isinstance(lease, str):
                raise _no_lease(lease)
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
    _check_length(field, column, leases)
    return column


def _check_length(field: str, column: Sequence[Any], leases: Sequence[str | None]) -> None:
    if len(column) != len(leases):
        raise InvalidRequestError(f"{field}: has {len(column)} values for {len(leases)} leases")


def is_one(policy_step: int | Sequence[int]) -> TypeGuard[int]:
    """Whether it is the step of all attempts."""
    return (
        not isinstance(policy_step, Sequence)
        and hasattr(policy_step, "__index__")
        and not getattr(policy_step, "shape", ())
    )


def _steps(leases: Sequence[str | None], policy_step: int | Sequence[int]) -> Sequence[int]:
    if is_one(policy_step):
        steps = [operator.index(policy_step)] * len(leases)
    else:
        values: Any = policy_step
        steps = converted("policy_step", values, operator.index)
        _check_length("policy_step", steps, leases)
    for step in set(steps):
        check_policy_step(step)
    return steps
