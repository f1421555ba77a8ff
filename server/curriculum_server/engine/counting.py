"""What reported attempts add to the ledger, and how far they bring their batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curriculum import PROBE_REASONS, Reason
from curriculum_api.errors import InvalidRequestError
from curriculum_server.engine.config import REWARD, RunConfig
from curriculum_server.store import batches, columns
from curriculum_server.store.batches import BatchRecord, OpenBatch
from curriculum_server.store.reports import Advance, Deltas

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Attempts:
    """Reported attempts as columns of K rows.

    tokens_K is None when no token counts were given.
    """

    slots_K: NDArray[np.int64]
    rewards_K: NDArray[np.float32]
    tokens_K: NDArray[np.int64] | None
    channels: Mapping[str, NDArray[np.float32]]


def count_deltas(attempts: Attempts, record: BatchRecord, config: RunConfig) -> Deltas:
    """What the attempts add to the ledger.

    Raises:
        InvalidRequestError: a slot, reward or channel value that is not allowed, or no values of a
            channel that the run's objective needs.
    """
    slot_count = len(record.slots)
    slots_K = attempts.slots_K
    if slots_K.max(initial=-1) >= slot_count:
        row = int(np.argmax(slots_K >= slot_count))
        raise InvalidRequestError(
            f"outcomes.slots[{row}]={slots_K[row]}: must be in [0, {slot_count - 1}] "
            f"in batch {record.batch_id!r}"
        )
    _check_range("outcomes.rewards", attempts.rewards_K, config.reward_min, config.reward_max)
    passed_K = attempts.rewards_K >= np.float32(config.pass_threshold)
    counts = {
        columns.ATTEMPTS: np.bincount(slots_K, minlength=slot_count),
        columns.PASSES: np.bincount(slots_K[passed_K], minlength=slot_count),
    }
    amounts = _amounts(attempts, passed_K, config)
    for name, amount_K in amounts.items():
        if amount_K.any():
            counts[name] = np.bincount(slots_K, amount_K, slot_count).astype(np.int64)
    is_probe_B = np.isin(record.slots["reason"], PROBE_REASONS)
    if is_probe_B.any():
        counts[columns.PROBED] = np.where(is_probe_B, counts[columns.ATTEMPTS], 0)
    attempts_B, passes_B = counts[columns.ATTEMPTS], counts[columns.PASSES]
    used_B = np.flatnonzero(attempts_B)
    if leased_for_reference(record):
        counts = {columns.REFERENCE_ATTEMPTS: attempts_B, columns.REFERENCE_PASSES: passes_B}
    objective_B = None
    if config.objective:
        objective_B = _common(slots_K, amounts[columns.OBJECTIVE], slot_count)[used_B]
    return Deltas(
        slot_B=used_B,
        index_B=record.slots["index"][used_B].astype(np.int64),
        attempts_B=attempts_B[used_B],
        passes_B=passes_B[used_B],
        columns={name: amounts_B[used_B] for name, amounts_B in counts.items()},
        objective_B=objective_B,
    )


def leased_for_probes(record: BatchRecord) -> bool:
    """Whether it is a prober's batch."""
    return bool(np.isin(record.slots["reason"], PROBE_REASONS).any())


def leased_for_reference(record: BatchRecord) -> bool:
    """Whether it is the reference policy that is to sample the batch."""
    return bool((record.slots["reason"] == Reason.REFERENCE).any())


def advance_batch(batch: OpenBatch, deltas: Deltas) -> Advance | None:
    """How far the attempts bring their batch; None when a slot does not take as many."""
    slot_K = deltas.slot_B
    before_K = batch.progress_B[slot_K].astype(np.int64)
    attempts_K = (before_K % batches.CLOSED >> 16) + deltas.attempts_B
    allotted_K = batch.record.slots["attempt_count"][slot_K]
    if np.any((before_K >= batches.CLOSED) | (attempts_K > allotted_K)):
        return None
    full_K = attempts_K == allotted_K
    low_K = before_K % (1 << 16)
    if deltas.objective_B is None:
        low_K += deltas.passes_B
        mixed_K = (low_K > 0) & (low_K < attempts_K)
    else:
        is_as_before_K = (before_K == 0) | (low_K == deltas.objective_B)
        low_K = np.where(is_as_before_K, deltas.objective_B, batches.MIXED)
        mixed_K = low_K == batches.MIXED
    after_B = batch.progress_B.copy()
    after_B[slot_K] = attempts_K << 16 | low_K | np.where(full_K, batches.CLOSED, 0)
    group_K = full_K & ~np.isin(batch.record.slots["reason"][slot_K], PROBE_REASONS)
    counts = int(group_K.sum()), int((group_K & mixed_K).sum())
    return Advance(after_B, deltas.index_B[full_K], *counts)


def _amounts(
    attempts: Attempts, passed_K: NDArray[np.bool_], config: RunConfig
) -> dict[str, Floats]:
    """What each attempt adds to the columns beside attempts and passes; whole numbers."""
    low, high = config.reward_min, config.reward_max
    position_K = (attempts.rewards_K.astype(np.float64) - low) / (high - low)
    amounts = {}
    if not np.array_equal(position_K, passed_K):
        amounts[columns.REWARD_EXCESS] = _fixed_point(position_K - passed_K)
        amounts[columns.REWARD_SQ_EXCESS] = _fixed_point(position_K**2 - passed_K)
    if attempts.tokens_K is not None:
        amounts[columns.TOKENS] = attempts.tokens_K.astype(np.float64)
    positions = _channel_positions(attempts, config)
    for name, channel_K in positions.items():
        amounts[columns.channel(name)] = _fixed_point(channel_K)
    if config.objective:
        objective_K = _objective({**positions, REWARD: position_K}, config)
        amounts[columns.OBJECTIVE] = _fixed_point(objective_K)
        amounts[columns.OBJECTIVE_SQ] = _fixed_point(objective_K**2)
    return amounts


def _channel_positions(attempts: Attempts, config: RunConfig) -> dict[str, Floats]:
    """Where the values lie in their channels' ranges."""
    declared = {channel.name: channel for channel in config.channels}
    positions = {}
    for name, values_K in attempts.channels.items():
        if name not in declared:
            allowed = ", ".join(declared) or "none: the run declares no channels"
            raise InvalidRequestError(f"outcomes.channels[{name}]: must be one of {allowed}")
        low, high = declared[name].min_value, declared[name].max_value
        _check_range(f"outcomes.channels[{name}].values", values_K, low, high)
        # The ends of a range are float64 and values float32, so a value may lie a hair outside.
        positions[name] = np.clip((values_K.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    return positions


def _objective(positions: Mapping[str, Floats], config: RunConfig) -> Floats:
    """Each attempt's weighted mean of positions, in [0, 1]."""
    terms = []
    for name, share in config.objective_shares():
        if name not in positions:
            raise InvalidRequestError(
                f"outcomes.channels[{name}]: must be there: it is part of the run's objective"
            )
        terms.append(share * positions[name])
    objective_K: Floats = np.clip(np.sum(terms, axis=0), 0.0, 1.0)
    return objective_K


def _common(slots_K: NDArray[np.int64], values_K: Floats, slot_count: int) -> NDArray[np.int64]:
    """The value that all rows of a slot have, or `MIXED`; of a slot without rows, anything."""
    whole_K = values_K.astype(np.int64)
    common_B = np.zeros(slot_count, np.int64)
    common_B[slots_K] = whole_K
    common_B[slots_K[whole_K != common_B[slots_K]]] = batches.MIXED
    return common_B


def _check_range(name: str, values_K: NDArray[np.float32], low: float, high: float) -> None:
    inside_K = (values_K >= np.float32(low)) & (values_K <= np.float32(high))  # false for NaN
    if not inside_K.all():
        row = int(np.argmin(inside_K))
        raise InvalidRequestError(
            f"{name}[{row}]={values_K[row]:g}: must be in [{low:g}, {high:g}]"
        )


def _fixed_point(values: Floats) -> Floats:
    return np.rint(values * columns.FIXED_POINT_SCALE)
