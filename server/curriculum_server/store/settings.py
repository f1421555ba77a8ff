"""How a store is set up, as far as it says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from curriculum_api.errors import CorruptStateError, StateError
from curriculum_server.store.cluster import ClusterRedis
from curriculum_server.store.connection import MINIMUM_VERSION, Redis, store_errors

SECTIONS = ("server", "persistence", "memory", "replication", "cluster")


@dataclass(frozen=True)
class Settings:
    """What a store says of itself."""

    info: Mapping[str, Any] = field(default_factory=dict)
    """INFO's fields."""
    appendfsync: str | None = None
    cluster_state: str | None = None
    refused: tuple[str, ...] = ()
    """Commands that it does not answer, as managed ones often do not."""
    node: str = ""
    """Of a cluster, the address of the one that said so."""

    @property
    def kind(self) -> str:
        """ "redis" or "valkey"; what says nothing else is taken for a Redis."""
        name = str(self.info.get("server_name", "redis"))
        return name if name in MINIMUM_VERSION else "redis"

    @property
    def version(self) -> str:
        """As it says, or "" where it does not."""
        return str(self.info.get(f"{self.kind}_version", self.info.get("redis_version", "")))

    @property
    def version_numbers(self) -> tuple[int, ...]:
        """To compare."""
        return tuple(int(part) for part in self.version.split(".")[:3] if part.isdigit())

    def __str__(self) -> str:
        return f"{self.kind} {self.version}" if self.version else "a store of unknown version"


async def read_settings(redis: Redis) -> list[Settings]:
    """Ask for everything, of a cluster each node that holds slots; what is refused is noted."""
    if not isinstance(redis, ClusterRedis):
        return [await _read(redis)]
    with store_errors():
        ranges = await redis.at_slot(None, lambda node: node.execute_command("CLUSTER SLOTS"))
    slot_of = {(_text(held[2][0]), int(held[2][1])): int(held[0]) for held in ranges}
    found = []
    for (host, port), slot in sorted(slot_of.items()):
        settings = await redis.at_slot(slot, _read)
        found.append(replace(settings, node=f"{host}:{port}"))
    return found


async def _read(redis: Redis) -> Settings:
    refused: list[str] = []
    info: dict[str, Any] = {}
    for section in SECTIONS:
        info |= await _ask(redis, refused, "INFO", section)
    appendfsync: dict[str, Any] = {}
    cluster: dict[str, Any] = {}
    if info.get("aof_enabled"):
        appendfsync = await _ask(redis, refused, "CONFIG GET", "appendfsync")
    if info.get("cluster_enabled"):
        cluster = await _ask(redis, refused, "CLUSTER INFO")
    return Settings(
        info, appendfsync.get("appendfsync"), cluster.get("cluster_state"), tuple(refused)
    )


async def _ask(redis: Redis, refused: list[str], *command: str) -> dict[str, Any]:
    ask: Any = redis.execute_command
    try:
        with store_errors():
            answer: dict[str, Any] = await ask(*command)
    except (StateError, CorruptStateError):  # not permitted, or no such command there
        refused.append(" ".join(command))
        return {}
    return answer


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
