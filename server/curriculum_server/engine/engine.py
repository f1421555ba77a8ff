"""The runs of this server."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from curriculum import warm_up
from curriculum_api.errors import (
    AlreadyExistsError,
    CorruptStateError,
    CurriculumError,
    NotFoundError,
)
from curriculum_server import metrics
from curriculum_server.engine.composing import Composer
from curriculum_server.engine.config import RunConfig
from curriculum_server.engine.reporting import BatchCache
from curriculum_server.engine.run import Run
from curriculum_server.store.commit import create_run, delete_run, knows_run
from curriculum_server.store.connection import Redis
from curriculum_server.store.document import Document

FOLLOW_INTERVAL_S = 1.0
"""How often a run that nobody asks about is brought up to date."""
IDLE_S = 3600.0
"""After so long without a call a run's mirror is let go; the next call reads it again."""
PAUSE_S = 0.05
"""Without a report for so long, a burst of them is over."""
FIRST_ROOM = 256
"""Runs to hold before those are looked for that turned out not to exist."""

logger = logging.getLogger(__name__)


@dataclass
class Served:
    """A run and what this server keeps beside its mirror."""

    run: Run
    batches: BatchCache = field(default_factory=BatchCache)
    composer: Composer = field(default_factory=Composer)
    refreshing: asyncio.Task[None] | None = None
    used_s: float = 0.0


class Engine:
    """Hands out runs by name and keeps those in use up to date."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._served: dict[str, Served] = {}
        self._room = FIRST_ROOM
        self._follow_interval_s = FOLLOW_INTERVAL_S
        self._follower: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Begin to follow the runs' events in the background."""
        await asyncio.to_thread(warm_up)
        self._follower = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Stop following. What is in the store is complete at any time."""
        self._stopping = True  # redis-py now and then swallows a cancellation
        tasks = [self._follower, *(served.refreshing for served in self._served.values())]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.redis.aclose()

    async def create(self, run_id: str, config: RunConfig) -> Run:
        """Create a run, or find it with the same configuration.

        Raises:
            AlreadyExistsError: it is there with another configuration.
            CorruptStateError: it was there and the store has lost it.
        """
        run = self.served(run_id).run
        if run.is_loaded:
            await self._refuse_lost(run)
        document = Document(config=config.to_mapping())
        made = await create_run(self.redis, run.keys, document)
        async with run.lock:
            await run.sync()
            if not made and run.mirror.config != config:
                raise AlreadyExistsError(f"run_id={run_id!r}: exists with another configuration")
        return run

    def served(self, run_id: str) -> Served:
        """The run of that name; whether it exists shows on the first `sync`."""
        if run_id not in self._served:
            if len(self._served) >= self._room:
                self._make_room()
            self._served[run_id] = Served(Run(self.redis, run_id))
        served = self._served[run_id]
        served.used_s = time.monotonic()
        return served

    def _make_room(self) -> None:
        """Callers may name any number of runs that do not exist."""
        for served in list(self._served.values()):
            if not (served.run.is_loaded or served.run.lock.locked()):
                self.forget(served.run.run_id)
        self._room = max(FIRST_ROOM, 2 * len(self._served))

    def forget(self, run_id: str) -> None:
        """Drop what is held of a run that turned out not to exist."""
        self._served.pop(run_id, None)

    async def delete(self, run_id: str) -> None:
        """Remove a run and all it holds, also one that the store has lost.

        Raises:
            NotFoundError: there is no such run, and was none lately.
        """
        run = self.served(run_id).run
        is_known = run.is_lost or await knows_run(self.redis, run.keys)
        if is_known:
            await delete_run(self.redis, run.keys)
        self.forget(run_id)
        if not is_known:
            raise NotFoundError(
                f"run_id={run_id!r}: there is no such run; `curriculum runs create` makes one"
            )

    async def _refuse_lost(self, run: Run) -> None:
        """A trainer that creates its run at every start must not get an empty one in its place."""
        try:
            async with run.lock:
                await run.sync()
        except NotFoundError:
            pass

    def warm(self, run_id: str, *, by_trainer: bool) -> None:
        """Fold in what was just reported before somebody waits for it."""
        served = self.served(run_id)
        if by_trainer:  # which is going to ask for its next batch
            served.composer.note_report()
        self._refresh(served)

    def _refresh(self, served: Served) -> None:
        """Bring a run up to date beside the others: one that is slow or stuck holds up none."""
        if served.refreshing is None or served.refreshing.done():
            served.refreshing = asyncio.create_task(self._sync_quietly(served))

    async def _follow(self) -> None:
        while not self._stopping:
            await asyncio.sleep(self._follow_interval_s)
            metrics.LOST_RUNS.set(sum(served.run.is_lost for served in self._served.values()))
            for served in list(self._served.values()):
                run, idle_s = served.run, time.monotonic() - served.used_s
                # Not loaded is a run that somebody asked for and that is not there.
                if run.is_loaded and (idle_s < IDLE_S or run.is_lost):
                    self._refresh(served)
                elif not run.lock.locked():
                    self.forget(run.run_id)

    async def _sync_quietly(self, served: Served) -> None:
        """Background work: whoever asks next meets the same error and is told."""
        run, composer = served.run, served.composer
        try:
            async with run.lock:
                await run.sync()
                must_fit = composer.must_fit(run)
                if not must_fit:
                    await composer.look_ahead(run)
            if must_fit:
                await _pause_of_reports(composer)
                async with run.lock:
                    await run.sync()
                    await composer.look_ahead(run)
            await run.tidy()
        except NotFoundError:
            self.forget(run.run_id)
        except CorruptStateError as error:
            if not run.is_lost:  # of that it was said once
                logger.warning("run not followed run=%s error=%s", run.run_id, error)
        except CurriculumError as error:
            logger.warning("run not followed run=%s error=%s", run.run_id, error)
        except Exception:  # the boundary: one damaged run must not end the following of the others
            logger.exception("run not followed run=%s", run.run_id)


async def _pause_of_reports(composer: Composer) -> None:
    """Wait for it: reports come in bursts, and each may make a fit useless."""
    seen = -1
    while composer.report_count != seen:
        seen = composer.report_count
        await asyncio.sleep(PAUSE_S)
