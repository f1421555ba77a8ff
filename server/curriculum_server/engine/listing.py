"""Listing the runs of a store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from curriculum_api.errors import CorruptStateError, StateError
from curriculum_server.store.commit import list_runs
from curriculum_server.store.connection import Redis
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.load import Header, load_header
from curriculum_server.store.parts import DAMAGE

T = TypeVar("T")

UNREADABLE = (CorruptStateError, StateError, *DAMAGE)
"""What a run raises that is damaged, or that a newer server wrote."""
SHOWN_CHARS = 200

logger = logging.getLogger(__name__)


async def list_page(
    redis: Redis, after: str, limit: int, show: Callable[[str, Header], T]
) -> tuple[list[T], str]:
    """What `show` makes of up to `limit` runs by name behind `after`, and the name to go on from,
    "" at the end.

    Their pools stay in the store: a list of all runs must not load them all. Nor must one that
    cannot be read hide the others: it is left out, and the log names it.
    """
    names = await list_runs(redis, after, limit + 1)
    shown = []
    for name in names[:limit]:
        try:
            header = await load_header(redis, RunKeys(name))
            if header is not None:
                shown.append(show(name, header))
        except UNREADABLE as error:
            said = repr(error)[:SHOWN_CHARS]
            logger.error("run not listed run=%s error=%s; see `curriculum doctor`", name, said)
    return shown, names[limit - 1] if len(names) > limit else ""
