"""What each key of a run is: its kind, its type, and whether it lives as long as the run."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from curriculum_server.store.columns import (
    ATTEMPTS,
    OBJECTIVE,
    OBJECTIVE_SQ,
    PASSES,
    PROBED,
    REFERENCE_ATTEMPTS,
    REFERENCE_PASSES,
    REWARD_EXCESS,
    REWARD_SQ_EXCESS,
    SERVED,
    TOKENS,
)
from curriculum_server.store.connection import Redis, store_errors
from curriculum_server.store.keys import RUN_INDEX, RunKeys

IMPORT = "import"
"""Field of the meta hash: the import that has taken the run's name; the run is not there yet."""
IMPORTED = "imported"
"""Field of the meta hash: the import that made the run."""
SCAN_COUNT = 1_000
RUN_KEY = re.compile(rb"cur:\{([A-Za-z0-9._-]{1,64})\}:(.+)", re.DOTALL)


class Kind(Enum):
    """What a run's keys hold: (pattern behind the prefix, type, lives as long as the run)."""

    META = (r"meta", "hash", True)
    EVENTS = (r"events", "stream", True)
    LEASES = (r"leases", "zset", True)
    CATALOG = (r"catalog:(?P<number>\d{1,10})", "string", True)
    PAYLOAD = (r"payload:(?P<number>\d{1,10})", "string", True)
    EMBEDDING = (r"embedding:(?P<number>\d{1,10})", "string", True)
    COLUMN = (
        rf"w:(?P<number>\d{{1,10}}):(?P<column>{ATTEMPTS}|{PASSES}|{REWARD_EXCESS}|"
        rf"{REWARD_SQ_EXCESS}|{TOKENS}|{PROBED}|{REFERENCE_ATTEMPTS}|"
        rf"{REFERENCE_PASSES}|{OBJECTIVE}|{OBJECTIVE_SQ}|{SERVED}|"
        r"ch:[a-z0-9_]{1,64})",
        "string",
        True,
    )
    OPEN_BATCHES = (r"open:(?P<number>\d{1,18})", "string", True)
    BATCH = (r"batch:\d+:.*", "hash", False)
    REPORT = (r"report:\d+:.*", "string", False)
    ROLLBACK = (r"rollback:.*", "string", False)
    DELETED = (r"deleted", "string", False)
    IMPORT = (r"import", "hash", False)

    def __init__(self, pattern: str, redis_type: str, permanent: bool) -> None:
        self.pattern = re.compile(pattern.encode(), re.DOTALL)
        self.redis_type = redis_type
        self.permanent = permanent


@dataclass(frozen=True)
class Known:
    """A key by what its name says."""

    kind: Kind
    number: int = -1
    """Of a chunk of prompts, a chunk of embeddings, a window or a checkpoint's open batches."""
    column: str = ""


@dataclass(frozen=True)
class Found:
    """A key that is in the store."""

    key: bytes
    run_id: str
    known: Known | None
    """None for a key of no known kind."""
    redis_type: str
    ttl_s: int
    """-1 for a key without a time to live."""


def identify(name: bytes) -> Known | None:
    """What a run's key is, by its name behind the run's prefix."""
    for kind in Kind:
        match = kind.pattern.fullmatch(name)
        if match is not None:
            parts = match.groupdict()
            column = (parts.get("column") or b"").decode()
            return Known(kind, int(parts.get("number") or -1), column)
    return None


def is_permanent(key: bytes) -> bool:
    """Whether the key is meant to be without a time to live."""
    match = RUN_KEY.fullmatch(key)
    known = identify(match[2]) if match else None
    return key == RUN_INDEX.encode() or (known is not None and known.kind.permanent)


async def find_keys(redis: Redis, run_id: str) -> AsyncIterator[list[Found]]:
    """The keys of one run, or with "" of every run, a few at a time."""
    prefix = RunKeys(run_id).prefix if run_id else "cur:{"
    batch: list[bytes] = []
    with store_errors():
        async for key in redis.scan_iter(match=f"{prefix}*", count=SCAN_COUNT):
            batch.append(key)
            if len(batch) == SCAN_COUNT:
                yield await look_at(redis, batch)
                batch = []
    if batch:
        yield await look_at(redis, batch)


async def look_at(redis: Redis, keys: Sequence[bytes]) -> list[Found]:
    """Type and time to live of keys of runs; those that are gone are left out."""
    # A pipeline holds the keys of one run, which a cluster keeps together.
    by_run: dict[str, list[tuple[bytes, bytes]]] = {}
    for key in keys:
        if match := RUN_KEY.fullmatch(key):
            by_run.setdefault(match[1].decode(), []).append((key, match[2]))
    found = []
    for run_id, names in by_run.items():
        with store_errors():
            async with redis.pipeline(transaction=False) as pipe:
                for key, _ in names:
                    pipe.type(key)
                    pipe.ttl(key)
                answers: list[Any] = await pipe.execute()
        for (key, name), kind, ttl in zip(names, answers[::2], answers[1::2], strict=True):
            if ttl != -2:
                found.append(Found(key, run_id, identify(name), _text(kind), int(ttl)))
    return found


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
