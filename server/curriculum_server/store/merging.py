"""Merging windows: several neighbours' columns become one window's.

What is merged takes no more counts, and how it is seen stays the same (`windows.py`), so this is
housekeeping: any server may do it at any time, and whoever comes second finds a newer layout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import numpy as np

from curriculum_server.store.batches import INDEX_DTYPE
from curriculum_server.store.columns import SERVED, cell_dtype, cell_limits
from curriculum_server.store.commit import Change, commit
from curriculum_server.store.connection import Redis, store_errors
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.load import Header
from curriculum_server.store.windows import Window


async def merge(
    redis: Redis, keys: RunKeys, header: Header, group: tuple[Window, ...], names: Sequence[str]
) -> bool:
    """Make one window of a group of neighbours; False when the run has another layout by now."""
    target = group[-1].window
    sets, deletes = {}, []
    for name in names:
        columns = [keys.column(window.window, name) for window in group]
        with store_errors():
            found = cast("list[bytes | None]", await redis.mget(columns))
        blobs = [blob for blob in found if blob]
        if blobs:
            # Off the event loop: a column of a million prompts is 4 MB.
            sets[columns[-1]] = await asyncio.to_thread(_sum, name, blobs)
            deletes += columns[:-1]
    fields = {f"{name}:{window.window}": "" for window in group for name in ("groups", "mixed")}
    groups, mixed = np.sum([header.groups[window.window] for window in group], axis=0).tolist()
    if groups:
        fields |= {f"groups:{target}": str(groups), f"mixed:{target}": str(mixed)}
    change = Change(sets=sets, deletes=deletes, meta_fields=fields)
    return await commit(redis, keys, header.layout, header.document.with_merged(group), change)


def _sum(name: str, blobs: Sequence[bytes]) -> bytes:
    return _newest_servings(blobs) if name == SERVED else _sum_cells(name, blobs)


def _sum_cells(name: str, blobs: Sequence[bytes]) -> bytes:
    """Cell by cell; a shorter column lacks cells at its end, which are 0."""
    dtype = cell_dtype(name)
    total = np.zeros(max(map(len, blobs)) // dtype.itemsize, np.int64)
    for blob in blobs:
        cells = np.frombuffer(blob, dtype)
        total[: len(cells)] += cells
    return np.clip(total, *cell_limits(name)).astype(dtype).tobytes()


def _newest_servings(blobs: Sequence[bytes]) -> bytes:
    """Of each prompt only its newest serving matters, which can no longer be undone by itself."""
    pairs = np.frombuffer(b"".join(blobs), INDEX_DTYPE).reshape(-1, 2)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    is_last = np.append(pairs[1:, 0] != pairs[:-1, 0], True)
    return bytes(pairs[is_last].tobytes())
