"""One run's ledger in numpy: a snapshot of the store with the run's events folded in.

It is a pure function of what the store holds: two servers that saw the same events hold the same
numbers to the bit, however they came by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from curriculum import Pool, Prepared, discount_weights, discounted_counts, prepare
from curriculum_server.engine.catalog import Catalog
from curriculum_server.engine.config import RunConfig
from curriculum_server.store.batches import SLOT_DTYPE
from curriculum_server.store.columns import ATTEMPTS, PASSES, SERVED, cell_dtype
from curriculum_server.store.document import Document
from curriculum_server.store.load import Header
from curriculum_server.store.reports import decode_deltas

Cells = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class Mirror:
    """The run as of `event_id`."""

    catalog: Catalog
    document: Document
    config: RunConfig
    layout: int
    policy_step: int
    groups: dict[int, tuple[int, int]]
    """By window: (completed groups, mixed groups)."""
    event_id: bytes
    columns: dict[tuple[int, str], Cells]
    """By (window, name), (N,); a column that nothing was added to is absent. `served` columns are
    only read at the start: `last_served_step_N` is their maximum."""
    lease_N: Cells
    """Second at which each prompt's lease runs out."""
    attempts_N: Cells
    """(N,) attempts ever counted."""
    last_served_step_N: Cells
    """(N,) policy step of the last serving to a trainer; -1 where there was none."""
    _counts: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)
    _prepared: dict[int, Prepared] = field(default_factory=dict)

    @classmethod
    def from_snapshot(
        cls,
        catalog: Catalog,
        header: Header,
        columns: Mapping[tuple[int, str], bytes],
        lease: bytes,
    ) -> Mirror:
        count = len(catalog)
        mirror = cls(
            catalog=catalog,
            document=header.document,
            config=RunConfig.from_mapping(header.document.config),
            layout=header.layout,
            policy_step=header.policy_step,
            groups=dict(header.groups),
            event_id=header.event_id,
            columns={at: _cells(blob, cell_dtype(at[1]), count) for at, blob in columns.items()},
            lease_N=_cells(lease, np.dtype(">u4"), count),
            attempts_N=np.zeros(0, np.int64),
            last_served_step_N=np.zeros(0, np.int64),
        )
        mirror.attempts_N = mirror.total(ATTEMPTS)
        served = [cells for (_, name), cells in mirror.columns.items() if name == SERVED]
        mirror.last_served_step_N = np.max([np.zeros(count, np.int64), *served], axis=0) - 1
        return mirror

    def adopt_header(self, header: Header) -> None:
        """Take a newer document, the catalog having grown to it; counts stay."""
        self.document = header.document
        self.config = RunConfig.from_mapping(header.document.config)
        self.layout = header.layout
        count = len(self.catalog)
        self.columns = {at: _grown(cells, count) for at, cells in self.columns.items()}
        self.lease_N = _grown(self.lease_N, count)
        self.attempts_N = _grown(self.attempts_N, count)
        self.last_served_step_N = _grown(self.last_served_step_N, count, fill=-1)
        self._touch()

    def apply(self, event: Mapping[bytes, bytes]) -> bool:
        """Fold one event in; False when it is a change of layout, which must be read."""
        kind = event[b"kind"]
        if kind == b"report":
            self._apply_report(event)
        elif kind == b"claim":
            self._apply_claim(event)
        elif kind == b"lease":
            self.lease_N[np.frombuffer(event[b"indices"], ">u4")] = int(event[b"expire"])
        else:
            return kind == b"created"
        return True

    def column(self, window: int, name: str) -> Cells:
        """(N,) cells, made of zeros where nothing was added yet."""
        return self.columns.setdefault((window, name), np.zeros(len(self.catalog), np.int64))

    def total(self, name: str) -> Cells:
        """(N,) sum of a column over all windows."""
        parts = [cells for (_, column), cells in self.columns.items() if column == name]
        return np.sum(parts, axis=0) if parts else np.zeros(len(self.catalog), np.int64)

    def pool(self, policy_step: int, now_s: int) -> Pool:
        """What selection sees at a policy step."""
        return Pool(
            *self._discounted_counts(policy_step),
            self.attempts_N,
            self.catalog.domain_N,
            tuple(self.catalog.domains),
            self.last_served_step_N,
            self.lease_N <= now_s,
            policy_step,
        )

    def prepared(self, pool: Pool) -> Prepared:
        """The part of selection that depends on counts and step alone, kept until either changes."""
        if pool.policy_step not in self._prepared:
            self._prepared = {pool.policy_step: prepare(pool, self.config.selection)}
        return self._prepared[pool.policy_step]

    def _discounted_counts(self, policy_step: int) -> tuple[Floats, Floats]:
        if policy_step not in self._counts:
            self._counts = {policy_step: self._discount(policy_step)}
        return self._counts[policy_step]

    def _discount(self, policy_step: int) -> tuple[Floats, Floats]:
        windows = [w for w in self.document.windows if (w.window, ATTEMPTS) in self.columns]
        if not windows:
            return np.zeros(len(self.catalog)), np.zeros(len(self.catalog))
        mid_W = np.array([(w.first_step + min(w.last_step, policy_step)) / 2 for w in windows])
        weights_W = discount_weights(mid_W, policy_step, self.config.selection.discount)
        attempts = [self.columns[w.window, ATTEMPTS] for w in windows]
        passes = [self.column(w.window, PASSES) for w in windows]
        return discounted_counts(attempts, passes, weights_W)

    def _apply_report(self, event: Mapping[bytes, bytes]) -> None:
        window = int(event[b"window"])
        deltas = decode_deltas(event[b"columns"].decode(), event[b"deltas"])
        for name, pairs in deltas.items():
            if len(pairs):
                self.column(window, name)[pairs[:, 0]] += pairs[:, 1]
        attempts = deltas[ATTEMPTS]
        self.attempts_N[attempts[:, 0]] += attempts[:, 1]
        freed = np.array(event[b"freed"].split(), np.int64)
        self.lease_N[freed] = 0
        done, mixed = self.groups.get(window, (0, 0))
        self.groups[window] = (done + int(event[b"groups"]), mixed + int(event[b"mixed"]))
        self.policy_step = max(self.policy_step, int(event[b"step"]))
        self._touch()

    def _apply_claim(self, event: Mapping[bytes, bytes]) -> None:
        indices = np.frombuffer(event[b"slots"], SLOT_DTYPE)["index"]
        self.lease_N[indices] = int(event[b"expire"])
        self.policy_step = max(self.policy_step, int(event[b"step"]))
        if event[b"served"] == b"1":
            self.last_served_step_N[indices] = int(event[b"step"])

    def _touch(self) -> None:
        self._counts.clear()
        self._prepared.clear()


def _cells(
    blob: bytes, dtype: np.dtype[np.signedinteger | np.unsignedinteger], count: int
) -> Cells:
    return _grown(np.frombuffer(blob, dtype).astype(np.int64)[:count], count)


def _grown(cells: Cells, count: int, fill: int = 0) -> Cells:
    if len(cells) == count:
        return cells
    return np.pad(cells, (0, count - len(cells)), constant_values=fill)
