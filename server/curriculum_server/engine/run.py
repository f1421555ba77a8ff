"""One run on this server: its mirror, kept up to date, and changes of its layout."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable

from curriculum import Model, Pool
from curriculum_api.errors import (
    ConflictError,
    CorruptStateError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
)
from curriculum_api.limits import MAX_POLICY_STEP
from curriculum_server import metrics
from curriculum_server.engine.catalog import Catalog
from curriculum_server.engine.features import prepare_features
from curriculum_server.engine.mirror import Mirror
from curriculum_server.engine.threads import in_thread
from curriculum_server.store.batches import BatchRecord
from curriculum_server.store.commit import Change, commit
from curriculum_server.store.connection import Redis
from curriculum_server.store.document import Document
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.load import (
    EVENTS_PER_READ,
    Catch,
    Header,
    catch_up,
    load_chunks,
    load_embedding_chunks,
    load_header,
    load_open_batches,
    load_record,
    load_snapshot,
)
from curriculum_server.store.merging import merge
from curriculum_server.store.windows import OPEN_WINDOWS, Window

MAX_STEP_ADVANCE = 10_000
"""A step further ahead than this of the newest one is taken for a mistake (a time stamp, say)."""
CHUNKS_PER_READ = 64
EMBEDDING_CHUNKS_PER_READ = 8
"""One has 8 MB at most."""
LAYOUT_TRIES = 20
THREAD_POOL_SIZE = 200_000
"""Prompts from which a full pass is worth a thread: below, it takes about as long as the switch.
A fit is worth one with any pool: it takes tenths of a second from some thousand prompts on."""

logger = logging.getLogger(__name__)

Decide = Callable[[Document], tuple[Document, Change] | None]


class Run:
    """A run's mirror and its keys. `lock` guards the mirror: hold it from `sync` to the last use
    of what was read."""

    def __init__(self, redis: Redis, run_id: str) -> None:
        self.redis = redis
        self.keys = RunKeys(run_id)
        self.lock = asyncio.Lock()
        self.resumed: dict[str, BatchRecord] = {}
        """By request_id, batches fetched ahead at the checkpoint that the timeline began from."""
        self.is_lost = False
        """Whether the store has lost the run, which this server knows to have been there."""
        self._mirror: Mirror | None = None
        self._clock_offset_s = 0.0
        self._known_seq = 0
        self._tidy_layout = -1  # the layout that was found to need no merging

    @property
    def run_id(self) -> str:
        return self.keys.run_id

    @property
    def mirror(self) -> Mirror:
        if self._mirror is None:
            raise NotFoundError(f"run_id={self.run_id!r}: there is no such run")
        return self._mirror

    @property
    def is_loaded(self) -> bool:
        return self._mirror is not None

    @property
    def is_behind(self) -> bool:
        """Whether events are known that the mirror does not hold; there may be others."""
        return self._mirror is None or self._mirror.seq < self._known_seq

    def note_event(self, seq: int) -> None:
        """Remember that the store has so many events by now."""
        self._known_seq = max(self._known_seq, seq)

    def now_s(self) -> int:
        """The store's clock, as of the last `sync`, carried on by ours."""
        return int(time.monotonic() + self._clock_offset_s)

    async def sync(self) -> None:
        """Fold in every event there is.

        Raises:
            NotFoundError: there is no such run.
            CorruptStateError: there was one, and the store has lost it.
        """
        if self._mirror is None:
            await self.reload()
        while True:
            catch = await catch_up(self.redis, self.keys, self.mirror.event_id)
            self._clock_offset_s = catch.now_s - time.monotonic()
            if not catch.exists:
                raise await self._gone()
            self.is_lost = False
            if catch.gap:
                await self._reload_behind(catch)
            elif await self._fold(catch):
                return

    async def reload(self, *, went_back: bool = False) -> None:
        """Read the whole run; the pool only if it is another one, as it may be in a store that went
        back in time."""
        header = await self._header()
        known = None if went_back else self._mirror
        same = known is not None and known.document.create_ms == header.document.create_ms
        catalog = known.catalog if known is not None and same else Catalog()
        names = header.document.column_names
        snapshot = await load_snapshot(self.redis, self.keys, names)
        if snapshot is None:
            raise await self._gone()
        await self._grow(catalog, snapshot.header)
        mark = snapshot.header.document.resumed
        number = mark.open_batches if mark else 0
        self.resumed = await load_open_batches(self.redis, self.keys, number) if number else {}
        self._known_seq = snapshot.header.seq
        self._mirror = Mirror.from_snapshot(catalog, snapshot)
        self.is_lost = False

    async def tidy(self) -> None:
        """Merge windows that are seen as one; some other time if the run changes meanwhile. Calls
        go on meanwhile: only the reading of what came of it takes the lock."""
        while self.is_loaded and self.mirror.layout != self._tidy_layout:
            if not self.mirror.document.merges():
                self._tidy_layout = self.mirror.layout
                return
            header = await load_header(self.redis, self.keys)
            groups = header.document.merges() if header else []
            if not header or not groups:
                return
            names = header.document.column_names
            if not await merge(self.redis, self.keys, header, groups[0], names):
                return
            async with self.lock:
                await self.sync()

    async def change_layout(
        self, decide: Decide, prepare: Callable[[], Awaitable[None]] | None = None
    ) -> Document:
        """Commit what `decide` makes of the newest document, and return that; None changes nothing.

        `decide` runs again on every newer document until a commit hits, so it holds all conditions;
        `prepare` reads before it what the mirror does not hold.
        The caller holds the lock.
        """
        for _ in range(LAYOUT_TRIES):
            await self.sync()
            if prepare is not None:
                await prepare()
            decision = decide(self.mirror.document)
            if decision is None:
                return self.mirror.document
            document, change = decision
            if await commit(self.redis, self.keys, self.mirror.layout, document, change):
                await self.sync()
                return document
        raise self.overtaken()

    def open_window(self, step: int) -> Window | None:
        """The window that takes counts of `step` as things are; None when there is none."""
        low, high = self._step_range()
        return self.mirror.document.window_for(step) if low <= step <= high else None

    async def window_for(self, step: int, timeline: int | None = None) -> Window:
        """The window that takes counts of `step`, opened if need be. The caller holds the lock.

        Raises:
            InvalidRequestError: a step that cannot be meant.
            ConflictError: a rollback has ended the caller's timeline.
        """
        self.check_step(step)
        window_steps = self.mirror.config.window_steps

        def add_window(document: Document) -> tuple[Document, Change] | None:
            self.check_timeline(timeline)  # a rollback may have come since
            if document.window_for(step) is not None:
                return None
            return document.with_window_for(step, window_steps), Change()

        while (window := self.mirror.document.window_for(step)) is None:
            await self.change_layout(add_window)
        return window

    async def pool(self, policy_step: int) -> tuple[Pool, Model]:
        """What selection sees at a step, computed off the event loop where that takes long. The
        caller holds the lock."""
        await prepare_features(self.mirror.catalog)
        if len(self.mirror.catalog) > THREAD_POOL_SIZE or not self.mirror.is_fitted:
            return await in_thread(self._pool, policy_step)
        return self._pool(policy_step)

    def _pool(self, policy_step: int) -> tuple[Pool, Model]:
        pool = self.mirror.pool(policy_step, self.now_s())
        return pool, self.mirror.model(pool)

    async def fit_next(self, policy_step: int) -> None:
        """Fit what the window that a step opens starts with. The caller holds the lock."""
        await prepare_features(self.mirror.catalog)
        await in_thread(self.mirror.fit_next, policy_step, self.now_s())

    def counting_step(self, step: int, *, for_reference: bool) -> int:
        """The step whose window takes what is counted of `step`: the reference policy's attempts
        are kept with those of the day."""
        return self.mirror.policy_step if for_reference else step

    def overtaken(self) -> OverloadedError:
        """What to raise when every try came too late for what others changed meanwhile."""
        return OverloadedError(f"run_id={self.run_id!r}: is changed by too many callers at once")

    def check_step(self, step: int) -> None:
        """Refuse a policy step that cannot be meant."""
        low, high = self._step_range()
        if step < low:
            raise InvalidRequestError(
                f"policy_step={step}: must be in [{low}, {high}]; older windows are closed, "
                "and a training that starts anew needs a run of its own"
            )
        if step > high:
            raise InvalidRequestError(
                f"policy_step={step}: must be in [{low}, {high}], the run being at step "
                f"{self.mirror.policy_step}"
            )

    @property
    def oldest_step(self) -> int:
        """The first step that still takes counts."""
        return self.mirror.document.windows[-OPEN_WINDOWS:][0].first_step

    def _step_range(self) -> tuple[int, int]:
        return self.oldest_step, min(self.mirror.policy_step + MAX_STEP_ADVANCE, MAX_POLICY_STEP)

    def check_timeline(self, timeline: int | None) -> None:
        """Fence off callers from before a rollback; those that name no timeline take any."""
        if timeline is None:
            return
        document = self.mirror.document
        if timeline > document.timeline:
            raise InvalidRequestError(f"timeline={timeline}: must be {document.timeline}")
        if timeline < document.timeline:
            mark = document.resumed
            # A store of the first version did not keep it.
            where = f" to checkpoint {mark.name!r} at step {mark.policy_step}" if mark else ""
            raise ConflictError(
                f"timeline={timeline}: must be {document.timeline}; the run was rolled back"
                f"{where}: resume from there"
            )

    async def _header(self) -> Header:
        header = await load_header(self.redis, self.keys)
        if header is None:
            raise await self._gone()
        return header

    async def _gone(self) -> NotFoundError | CorruptStateError:
        """What to raise when the store does not have the run: a deletion leaves a note, a store
        that came back empty has none."""
        is_known = self._mirror is not None or self.is_lost
        if is_known and await load_record(self.redis, self.keys.deleted) is None:
            if not self.is_lost:
                self.is_lost = True
                logger.critical("run lost by the store run=%s seq=%s", self.run_id, self._known_seq)
            return lost(self.run_id)
        self._mirror, self.is_lost = None, False
        return NotFoundError(f"run_id={self.run_id!r}: there is no such run")

    async def _reload_behind(self, catch: Catch) -> None:
        """Start anew where the stream does not lead on from what the mirror holds."""
        before = self.mirror
        went_back = catch.forked or catch.seq < before.seq
        await self.reload(went_back=went_back)
        same = self.mirror.document.create_ms == before.document.create_ms
        if same and went_back:
            # Not merely behind: the store went back, as after a failover or a crash without
            # `appendfsync always`. The store is the truth; what it lost is lost.
            metrics.STORE_REGRESSIONS.labels(self.run_id).inc()
            logger.critical(
                "store lost events run=%s seq_before=%s seq=%s", self.run_id, before.seq,
                self.mirror.seq,
            )  # fmt: skip
        else:
            logger.warning("mirror reloaded run=%s", self.run_id)

    async def _fold(self, catch: Catch) -> bool:
        """Apply events in order; False when more may be waiting."""
        for event_id, event in catch.events:
            if not self.mirror.apply(event):
                header = await self._header()
                timeline = self.mirror.document.timeline
                if event[b"kind"] == b"reload" or header.document.timeline != timeline:
                    await self.reload()
                    return False
                await self._grow(self.mirror.catalog, header)
                self.mirror.adopt_header(header)
            self.mirror.seq += 1
            self.mirror.event_id = event_id
        if len(catch.events) == EVENTS_PER_READ:
            return False
        if (self.mirror.seq, self.mirror.claims) != (catch.seq, catch.claims):
            # Events were lost (a failover) or one was applied by halves: the numbers tell.
            await self._reload_behind(catch)
            return False
        return True

    async def _grow(self, catalog: Catalog, header: Header) -> None:
        document = header.document
        if catalog.chunk_count < document.chunk_count:
            await self._read_chunks(catalog, document)
        while (first := catalog.embedding_chunk_count) < document.embedding_chunk_count:
            stop = min(document.embedding_chunk_count, first + EMBEDDING_CHUNKS_PER_READ)
            for chunk in await load_embedding_chunks(self.redis, self.keys, first, stop):
                catalog.append_embedding_chunk(chunk)
                await asyncio.sleep(0)
        catalog.use_embedding_chunks(document.used_embedding_chunk_count)

    async def _read_chunks(self, catalog: Catalog, document: Document) -> None:
        while catalog.chunk_count < document.chunk_count:
            stop = min(document.chunk_count, catalog.chunk_count + CHUNKS_PER_READ)
            for chunk in await load_chunks(self.redis, self.keys, catalog.chunk_count, stop):
                catalog.append_chunk(*chunk)
                await asyncio.sleep(0)
        # The pool stays: without this, each full collection walks through all of it.
        gc.freeze()


def lost(run_id: str) -> CorruptStateError:
    """What callers are told of a run that the store has lost."""
    return CorruptStateError(
        f"run_id={run_id!r}: the store does not hold this run any more, and nobody deleted it: the "
        "store came back empty or older; restore the store, or delete the run to accept it"
    )
