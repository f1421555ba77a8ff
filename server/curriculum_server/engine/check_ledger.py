"""Whether a window's columns can be what reports added up to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curriculum_server.engine.findings import SHOWN_PER_KIND, Findings, shown
from curriculum_server.store.batches import INDEX_DTYPE
from curriculum_server.store.columns import (
    ATTEMPTS,
    FIXED_POINT_SCALE,
    OBJECTIVE,
    OBJECTIVE_SQ,
    PASSES,
    PROBED,
    REFERENCE_ATTEMPTS,
    REFERENCE_PASSES,
    SERVED,
    cell_dtype,
    cell_limits,
)
from curriculum_server.store.connection import Redis
from curriculum_server.store.document import Document
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.parts import CELL_BYTES
from curriculum_server.store.transfer import read_pieces, read_sizes
from curriculum_server.store.windows import Window

SERVING_BYTES = 8
CELLS_PER_LOOK = 1 << 18
AT_MOST = (
    (PASSES, ATTEMPTS, 1),
    (REFERENCE_PASSES, REFERENCE_ATTEMPTS, 1),
    (PROBED, ATTEMPTS, 1),
    (OBJECTIVE, ATTEMPTS, FIXED_POINT_SCALE),
    (OBJECTIVE_SQ, OBJECTIVE, 1),
)
"""(column, another, factor): each cell is at most so many times the other's."""

_CUT = "`EVAL \"return redis.call('SET',KEYS[1],redis.call('GETRANGE',KEYS[1],0,{last}))\" 1 {key}`"

Column = NDArray[np.signedinteger | np.unsignedinteger]


async def check_window(
    redis: Redis,
    keys: RunKeys,
    layout: int | None,
    document: Document,
    window: Window,
    findings: Findings,
) -> bool:
    """Look at one window; False when the run has another layout by now."""
    columns = {name: keys.column(window.window, name) for name in document.column_names}
    sizes = dict(zip(columns, await read_sizes(redis, columns.values()), strict=True))
    look = _Look(document, window, columns, findings)
    look.check_sizes(sizes)
    used = [name for name, size in sizes.items() if size and name != SERVED]
    step = CELL_BYTES * CELLS_PER_LOOK
    for at in range(0, CELL_BYTES * document.prompt_count, step):
        wanted = [columns[name] for name in used]
        blobs = await read_pieces(redis, keys, layout, wanted, at, at + step)
        if blobs is None:
            return False
        look.check_cells(dict(zip(used, blobs, strict=True)), at // CELL_BYTES)
        await asyncio.sleep(0)
    step = SERVING_BYTES * CELLS_PER_LOOK
    for at in range(0, sizes[SERVED], step):
        blobs = await read_pieces(redis, keys, layout, [columns[SERVED]], at, at + step)
        if blobs is None:
            return False
        look.check_servings(blobs[0])
        await asyncio.sleep(0)
    return await read_pieces(redis, keys, layout, [], 0, 1) is not None


@dataclass(frozen=True)
class _Look:
    """One window's columns, by name, and what is said of them."""

    document: Document
    window: Window
    columns: Mapping[str, str]
    findings: Findings

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            if name != SERVED:
                self._check_column_size(shown(self.columns[name]), size)
            elif size % SERVING_BYTES:
                self.findings.error(
                    "served_broken",
                    f"{shown(self.columns[name])} has {size} bytes: must be a multiple of "
                    f"{SERVING_BYTES}",
                    self._forget_servings(),
                )

    def _check_column_size(self, key: str, size: int) -> None:
        most = CELL_BYTES * self.document.prompt_count
        whole = min(size - size % CELL_BYTES, most)
        if whole == size:
            return
        cut = _CUT.format(last=whole - 1, key=key) if whole else f"`UNLINK {key}`"
        self.findings.error(
            "column_broken" if size % CELL_BYTES else "column_too_long",
            f"{key} has {size} bytes: must be a multiple of {CELL_BYTES} up to {most}, for "
            f"{self.document.prompt_count} prompts",
            f"cut off what counts for no prompt: {cut}, and restart the servers",
        )

    def check_cells(self, blobs: Mapping[str, bytes], first: int) -> None:
        cells = {name: _whole_cells(blob, name) for name, blob in blobs.items()}
        for name, values in cells.items():
            self._check_limits(name, values, first)
        for small, large, factor in AT_MOST:
            values = cells.get(small, np.zeros(0)).astype(np.int64)
            bounds = factor * cells.get(large, np.zeros(0)).astype(np.int64)
            bounds = np.pad(bounds, (0, max(0, len(values) - len(bounds))))[: len(values)]
            for at in np.flatnonzero(values > bounds)[: SHOWN_PER_KIND + 1].tolist():
                cell, value, bound = first + at, int(values[at]), int(bounds[at])
                if small in (PASSES, REFERENCE_PASSES):
                    self._refuse_passes((small, large), cell, value, bound)
                else:
                    self._refuse_sum(small, cell, value, bound)

    def _check_limits(self, name: str, values: Column, first: int) -> None:
        low, high = cell_limits(name)
        is_full = (values == high) | (values == low) if low else values == high
        for at in np.flatnonzero(is_full)[: SHOWN_PER_KIND + 1].tolist():
            self.findings.warning(
                "column_saturated",
                f"{shown(self.columns[name])} cell {first + at} is {values[at]}, the most that a "
                "cell holds: what was added beyond is not counted",
                "shorter windows hold less each: curriculum runs update "
                f"{self.findings.run_id} --set window_steps=…",
            )

    def _refuse_passes(self, names: tuple[str, str], cell: int, passes: int, attempts: int) -> None:
        self.findings.error(
            "passes_exceed_attempts",
            f"{shown(self.columns[names[0]])} cell {cell} is {passes}: must be at most {attempts}, "
            "the attempts",
            f"{self._roll_back()}count the passes as attempts: "
            f"{self._set_cell(names[1], cell, passes)}",
        )

    def _refuse_sum(self, name: str, cell: int, value: int, bound: int) -> None:
        self.findings.error(
            "objective_exceeds_attempts",
            f"{shown(self.columns[name])} cell {cell} is {value}: must be at most {bound}, as an "
            "objective is at most 1 and its square at most itself",
            f"{self._roll_back()}lower it: {self._set_cell(name, cell, bound)}",
        )

    def _roll_back(self) -> str:
        marks = [m.name for m in self.document.checkpoints if m.window < self.window.window]
        return f"roll back to the checkpoint {marks[-1]!r}, or " if marks else ""

    def _set_cell(self, name: str, cell: int, value: int) -> str:
        key, at = shown(self.columns[name]), 8 * CELL_BYTES * cell
        return f"`BITFIELD {key} SET u32 {at} {value}`, and restart the servers"

    def check_servings(self, blob: bytes) -> None:
        whole = blob[: len(blob) // SERVING_BYTES * SERVING_BYTES]
        index_K = np.frombuffer(whole, INDEX_DTYPE)[::2]
        if (index_K >= self.document.prompt_count).any():
            self.findings.error(
                "served_beyond_pool",
                f"{shown(self.columns[SERVED])} names prompt {index_K.max()} of "
                f"{self.document.prompt_count}",
                self._forget_servings(),
            )

    def _forget_servings(self) -> str:
        key = shown(self.columns[SERVED])
        return f"`UNLINK {key}` forgets who rested in this window; then restart the servers"


def _whole_cells(blob: bytes, name: str) -> Column:
    return np.frombuffer(blob[: len(blob) // CELL_BYTES * CELL_BYTES], cell_dtype(name))
