"""One run's ledger in numpy: a snapshot of the store with the run's events folded in.

It is a pure function of what the store holds: two servers that saw the same events hold the same
numbers to the bit, however they came by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from curriculum import Block, Model, Pool
from curriculum_api.errors import CorruptStateError
from curriculum_server.engine.catalog import Catalog
from curriculum_server.engine.config import RunConfig
from curriculum_server.store.batches import CLOSED, INDEX_DTYPE
from curriculum_server.store.columns import (
    ATTEMPTS,
    FIXED_POINT_SCALE,
    OBJECTIVE,
    OBJECTIVE_SQ,
    PASSES,
    PROBED,
    SERVED,
    TOKENS,
    cell_dtype,
    cell_limits,
    of_reference,
)
from curriculum_server.store.document import Document
from curriculum_server.store.load import Header, Snapshot
from curriculum_server.store.reports import decode_deltas
from curriculum_server.store.windows import Window, blocks, covering, mid_steps

TOTALS = (ATTEMPTS, TOKENS)
"""Columns of which selection needs the sum over all windows."""

Cells = NDArray[np.int64]


@dataclass
class Mirror:
    """The run as of `event_id`."""

    catalog: Catalog
    document: Document
    windows: tuple[Window, ...]
    """The document's windows as `blocks` shows them; the keys of `groups` and `columns`."""
    config: RunConfig
    layout: int
    seq: int
    """Events folded in, from the run's first."""
    claims: int
    """Those of them that lease prompts."""
    policy_step: int
    groups: dict[int, tuple[int, int]]
    """By window: (completed groups, mixed groups)."""
    event_id: bytes
    columns: dict[tuple[int, str], Cells]
    """By (window, name), (N,); a column that nothing was added to is absent."""
    lease_N: Cells
    """Second at which each prompt's lease runs out."""
    totals: dict[str, Cells]
    """By name of `TOTALS`, (N,) sums over all windows; one that nothing was added to is absent."""
    last_served_step_N: Cells
    """(N,) policy step of the last serving to a trainer; -1 where there was none."""
    _model: Model | None = field(default=None)
    """Fitted on the blocks as they are."""
    _latest: Model | None = field(default=None)
    _next: tuple[tuple[Window, ...], Model] | None = field(default=None)
    """What the window that is opened next starts with, and the windows there are then."""
    _fitted_on: Mapping[int, bytes] | None = field(default=None)
    """The catalog's embeddings that both were fitted with."""
    _zeros_N: Cells = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def from_snapshot(cls, catalog: Catalog, snapshot: Snapshot) -> Mirror:
        """The mirror of a run whose prompts are in the catalog.

        Raises:
            CorruptStateError: the run has counts or leases of prompts that it does not have.
        """
        count, header = len(catalog), snapshot.header
        windows = blocks(header.document.windows)
        mirror = cls(
            catalog=catalog,
            document=header.document,
            windows=windows,
            config=RunConfig.from_mapping(header.document.config),
            layout=header.layout,
            seq=header.seq,
            claims=header.claims,
            policy_step=header.policy_step,
            groups=_by_block(windows, header.groups),
            event_id=header.event_id,
            columns={},
            lease_N=np.zeros(count, np.int64),
            totals={},
            last_served_step_N=np.full(count, -1, np.int64),
        )
        with _within_the_pool():
            mirror._read(snapshot)
        return mirror

    def _read(self, snapshot: Snapshot) -> None:
        for (window, name), blob in snapshot.columns.items():
            if name == SERVED:
                pairs = np.frombuffer(blob, INDEX_DTYPE).reshape(-1, 2).astype(np.int64)
                np.maximum.at(self.last_served_step_N, pairs[:, 0], pairs[:, 1])
            else:
                self._add(window, name, _cells(blob, cell_dtype(name), len(self.catalog)))
        held = {column for _, column in self.columns}
        self.totals = {name: self.total(name) for name in TOTALS if name in held}
        for batch in snapshot.batches:
            index_K = batch.record.slots["index"][batch.progress_B < CLOSED].astype(np.int64)
            held_K = self.lease_N[index_K]
            self.lease_N[index_K] = np.maximum(held_K, batch.record.expire_s)

    def adopt_header(self, header: Header) -> None:
        """Take a newer document, the catalog having grown to it; counts stay, in fewer windows
        where they are seen as one now."""
        before = (self.windows, self.config)
        self.document = header.document
        self.windows = blocks(header.document.windows)
        self.config = RunConfig.from_mapping(header.document.config)
        self.layout = header.layout
        if before == (self.windows, self.config):
            return
        self.groups = _by_block(self.windows, self.groups)
        columns, self.columns = self.columns, {}
        for (window, name), cells in columns.items():
            self._add(window, name, cells)
        fitted, self._next = self._next, None
        is_of_these = fitted is not None and fitted[0] == self.windows and before[1] == self.config
        self._model = fitted[1] if fitted is not None and is_of_these else None
        self._remember()

    def apply(self, event: Mapping[bytes, bytes]) -> bool:
        """Fold one event in; False when it is a change of layout, which must be read. The caller
        counts it in `seq` when it is done.

        Raises:
            CorruptStateError: it is of a prompt that the pool does not have.
        """
        self._grow()
        kind = event[b"kind"]
        with _within_the_pool():
            if kind == b"report":
                self._apply_report(event)
            elif kind == b"claim":
                self._apply_claim(event)
            elif kind == b"lease":
                self._set_leases(_indices(event[b"indices"]), event, int(event[b"expire"]))
                self.claims += event[b"expire"] != b"0"
        return kind in (b"report", b"claim", b"lease", b"created")

    def column(self, window: int, name: str) -> Cells:
        """(N,) cells; zeros where nothing was added yet."""
        self._grow()
        cells = self.columns.get((window, name))
        return np.zeros(len(self.lease_N), np.int64) if cells is None else cells

    def _add(self, window: int, name: str, cells_N: Cells) -> None:
        at = (covering(self.windows, window).window, name)
        self.columns[at] = self.columns[at] + cells_N if at in self.columns else cells_N

    def total(self, name: str) -> Cells:
        """(N,) sum of a column over all windows."""
        self._grow()
        parts = [cells for (_, column), cells in self.columns.items() if column == name]
        return np.sum(parts, axis=0) if parts else np.zeros(len(self.lease_N), np.int64)

    def reference(self, name: str) -> Cells:
        """(N,) attempts or passes of the reference policy, whenever they were made."""
        return self.column(0, name) + self.total(of_reference(name))

    @property
    def attempts_N(self) -> Cells:
        """(N,) attempts ever counted."""
        return self.totals.get(ATTEMPTS, self._nothing_N())

    def pool(self, policy_step: int, now_s: int, windows: tuple[Window, ...] | None = None) -> Pool:
        """What selection sees at a policy step; with `windows`, as if there were these."""
        self._grow()
        features, windows = self.catalog.features, windows or self.windows
        return Pool(
            blocks=tuple(map(self._block, windows, mid_steps(windows, policy_step))),
            attempts_N=self.attempts_N,
            domain_N=self.catalog.domain_N,
            domains=tuple(self.catalog.domains),
            last_served_step_N=self.last_served_step_N,
            free_N=self.free_N(now_s),
            policy_step=policy_step,
            features_NK=features.values_NK if features is not None and features.names else None,
            tokens_N=self.totals.get(TOKENS),
        )

    def model(self, pool: Pool) -> Model:
        """Fitted on the pool's closed blocks; kept until they change. It does not depend on the
        policy step."""
        if self._model is None:
            self._model = pool.fit()
            self._remember()
        return self._model

    def _remember(self) -> None:
        if self._model is not None:
            self._latest = replace(self._model, settled=None)

    @property
    def latest_model(self) -> Model | None:
        """The last one fitted on these prompts, whatever was counted since; None without any. It
        has settled nothing, so that it can be asked about few prompts with all that is counted."""
        self._grow()
        return self._latest

    @property
    def is_fitted(self) -> bool:
        """Whether `model` has its answer at hand."""
        self._grow()
        return self._model is not None

    def fit_next(self, policy_step: int, now_s: int) -> None:
        """Fit what the window that a step opens starts with, before it is waited for."""
        self._grow()
        document = self.document.with_window_for(policy_step, self.config.window_steps)
        windows = blocks(document.windows)
        if windows[:-1] == self.windows and (self._next is None or self._next[0] != windows):
            self._next = windows, self.pool(policy_step, now_s, windows).fit()

    def _block(self, window: Window, mid_step: float) -> Block:
        is_graded = bool(self.config.objective)
        return Block(
            mid_step=mid_step,
            attempts_N=self._shown(window, ATTEMPTS),
            passes_N=self._shown(window, OBJECTIVE if is_graded else PASSES),
            squares_N=self._shown(window, OBJECTIVE_SQ) if is_graded else None,
            probed_N=self.columns.get((window.window, PROBED)),
            unit=float(FIXED_POINT_SCALE) if is_graded else 1.0,
        )

    def _shown(self, window: Window, name: str) -> Cells:
        """A column without a copy of zeros for each that is absent."""
        return self.columns.get((window.window, name), self._nothing_N())

    def _nothing_N(self) -> Cells:
        if len(self._zeros_N) != len(self.lease_N):
            self._zeros_N = np.zeros(len(self.lease_N), np.int64)
        return self._zeros_N

    def free_N(self, now_s: int) -> NDArray[np.bool_]:
        """(N,) whether each prompt is leased by nobody."""
        self._grow()
        free: NDArray[np.bool_] = self.lease_N <= now_s
        return free

    def _grow(self) -> None:
        """Give the arrays the catalog's length. When they are used, and not with every chunk that
        is added: a large pool comes in hundreds of chunks. And forget what was fitted when prompts
        were described otherwise."""
        if self._fitted_on is not self.catalog.embeddings:
            self._fitted_on = self.catalog.embeddings
            self._model = self._latest = self._next = None
        count = len(self.catalog)
        if count == len(self.lease_N):
            return
        self.columns = {at: _grown(cells, count) for at, cells in self.columns.items()}
        self.lease_N = _grown(self.lease_N, count)
        self.totals = {name: _grown(cells, count) for name, cells in self.totals.items()}
        self.last_served_step_N = _grown(self.last_served_step_N, count, fill=-1)
        self._model = self._latest = self._next = None

    def _apply_report(self, event: Mapping[bytes, bytes]) -> None:
        window = covering(self.windows, int(event[b"window"])).window
        if window != self.windows[-1].window or len(self.windows) == 1:
            self._model = None
        self._next = None
        index_K, deltas = decode_deltas(event[b"columns"], event[b"deltas"])
        for name, amounts_K in deltas.items():
            cells = self.column(window, name)
            before_K = cells[index_K]
            cells[index_K] = np.clip(before_K + amounts_K, *cell_limits(name))
            self.columns[window, name] = cells
            if name in TOTALS:
                self.totals.setdefault(name, np.zeros(len(self.lease_N), np.int64))
                self.totals[name][index_K] += cells[index_K] - before_K
        self._set_leases(_indices(event[b"completed"]), event, 0)
        done, mixed = self.groups.get(window, (0, 0))
        self.groups[window] = (done + int(event[b"groups"]), mixed + int(event[b"mixed"]))
        self.policy_step = max(self.policy_step, int(event[b"step"]))

    def _apply_claim(self, event: Mapping[bytes, bytes]) -> None:
        self.claims += 1
        indices, step = _indices(event[b"indices"]), int(event[b"step"])
        self.lease_N[indices] = int(event[b"expire"])
        self.policy_step = max(self.policy_step, step)
        if event[b"served"] == b"1":
            self.last_served_step_N[indices] = np.maximum(self.last_served_step_N[indices], step)

    def _set_leases(self, indices: Cells, event: Mapping[bytes, bytes], expire_s: int) -> None:
        """Change the leases that a batch still holds: those whose expiry is the batch's. Another is
        of a batch that leased the prompt after this one had expired."""
        held = indices[self.lease_N[indices] == int(event[b"before"])]
        self.lease_N[held] = expire_s


@contextmanager
def _within_the_pool() -> Iterator[None]:
    try:
        yield
    except IndexError as error:
        raise CorruptStateError(
            f"the store has counts or leases of a prompt that the pool lacks ({error}); see "
            "`curriculum doctor`"
        ) from error


def _by_block(
    windows: Sequence[Window], groups: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    sums: dict[int, tuple[int, int]] = {}
    for window, (completed, mixed) in groups.items():
        at = covering(windows, window).window
        before = sums.get(at, (0, 0))
        sums[at] = (before[0] + completed, before[1] + mixed)
    return sums


def _cells(
    blob: bytes, dtype: np.dtype[np.signedinteger | np.unsignedinteger], count: int
) -> Cells:
    return _grown(np.frombuffer(blob, dtype).astype(np.int64)[:count], count)


def _grown(cells: Cells, count: int, fill: int = 0) -> Cells:
    if len(cells) == count:
        return cells
    return np.pad(cells, (0, count - len(cells)), constant_values=fill)


def _indices(blob: bytes) -> Cells:
    return np.frombuffer(blob, INDEX_DTYPE).astype(np.int64)
