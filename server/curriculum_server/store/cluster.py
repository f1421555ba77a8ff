"""Redis Cluster: each command goes to the node that holds its keys' slot.

All keys of a run lie on one slot, so a node's own client and pool do all the work; what is added
here is finding the node. redis-py's cluster client is not used: its asyncio transactions start a
thread and an event loop for every command that they queue, and know none without a key.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from redis import asyncio as aioredis
from redis import exceptions as rx
from redis.asyncio.client import Pipeline
from redis.crc import key_slot

from curriculum_server.store.connection import url_options

REDIRECT_LIMIT = 3
"""A slot moves from one node to another; more redirections are nodes that disagree for a moment."""

_SCRIPT_COMMANDS = ("EVAL", "EVALSHA")
_KEYLESS_COMMANDS = ("INFO", "TIME")

Address = tuple[str, int]
T = TypeVar("T")


class ClusterRedis(aioredis.Redis):
    """As much of a client as the store needs, over a whole cluster.

    A call fails that meets a node which is gone or a slot on its way from node to node, and has the
    cluster asked anew for those to come. Nothing is repeated here but what a node refused.
    """

    def __init__(self, url: str) -> None:
        self._options = url_options(url)
        self._seed: Address = (
            self._options.get("host", "localhost"),
            self._options.get("port", 6379),
        )
        self._nodes: dict[Address, Any] = {}
        self._layout: _Layout | None = None
        self._reading: asyncio.Task[None] | None = None
        self._turn = 0
        super().__init__(connection_pool=self._node(self._seed).connection_pool)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] == "SCRIPT LOAD":
            return await self._everywhere(*args, **options)
        return await self.at_slot(_slot(args), lambda node: node.execute_command(*args, **options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _ClusterPipeline(self, transaction, shard_hint)

    async def scan_iter(  # type: ignore[override]  # redis-py declares its iterator as a plain one
        self, *args: Any, **options: Any
    ) -> AsyncIterator[Any]:
        """The keys of all nodes: those of a slot that is moved key by key lie on two."""
        for address in (await self._known_layout()).addresses:
            async for key in self._node(address).scan_iter(*args, **options):
                yield key

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        for node in self._nodes.values():
            await node.aclose()

    async def at_slot(self, slot: int | None, call: Callable[[Any], Awaitable[T]]) -> T:
        """Make the call on the node that holds the slot, wherever it has moved."""
        for attempt in range(REDIRECT_LIMIT + 1):
            layout = await self._known_layout()
            try:
                address = layout.find(slot)
                return await call(self._node(address))
            except rx.MovedError as error:
                layout.move(error.slot_id, (error.host or address[0], error.port))
                self._read_again()  # where one slot moved, others may have
                if attempt == REDIRECT_LIMIT:
                    raise
            except (rx.ConnectionError, rx.TimeoutError, rx.ClusterDownError, OSError):
                self._read_again()
                raise
        raise AssertionError("not reached")

    async def _everywhere(self, *args: Any, **options: Any) -> Any:
        """On every primary; one that is away does not matter to those who use another."""
        addresses = (await self._known_layout()).addresses
        calls = [self._node(address).execute_command(*args, **options) for address in addresses]
        replies = await asyncio.gather(*calls, return_exceptions=True)
        failures = [reply for reply in replies if isinstance(reply, BaseException)]
        if len(failures) == len(replies):
            raise failures[0]
        return next(reply for reply in replies if not isinstance(reply, BaseException))

    async def _known_layout(self) -> _Layout:
        if self._layout is None:
            await asyncio.shield(self._read_again())
        assert self._layout is not None
        return self._layout

    def _read_again(self) -> asyncio.Task[None]:
        """In the background, once for all who find the layout wrong."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_layout())
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._reading

    async def _read_layout(self) -> None:
        """From any node that answers, another one each time: one that is cut off may be wrong."""
        known = [self._seed, *(self._layout.addresses if self._layout else ())]
        self._turn += 1
        failure: Exception | None = None
        for number in range(len(known)):
            address = known[(self._turn + number) % len(known)]
            try:
                ranges = await self._node(address).execute_command("CLUSTER SLOTS")
            except (rx.RedisError, OSError) as error:
                failure = error
            else:
                self._layout = _Layout.from_reply(ranges, address)
                return
        raise rx.ConnectionError(f"no node of the cluster answers: {failure}")

    def _node(self, address: Address) -> Any:
        if address not in self._nodes:
            host, port = address
            pool = aioredis.BlockingConnectionPool(**self._options | {"host": host, "port": port})
            self._nodes[address] = aioredis.Redis.from_pool(pool)
        return self._nodes[address]


class _ClusterPipeline(Pipeline):
    """A pipeline whose keys lie on one slot."""

    def __init__(self, cluster: ClusterRedis, transaction: bool, shard_hint: str | None) -> None:
        callbacks = cluster.response_callbacks
        super().__init__(cluster.connection_pool, callbacks, transaction, shard_hint)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack = list(self.command_stack)
        slots = (_slot(command) for command, _ in stack)

        async def execute_on(node: Any) -> list[Any]:
            self.command_stack = list(stack)  # the first try, if any, emptied it
            self.connection_pool = node.connection_pool
            return await super(_ClusterPipeline, self).execute(raise_on_error)

        slot = next((slot for slot in slots if slot is not None), None)
        return await self._cluster.at_slot(slot, execute_on)


class _Layout:
    """Which node holds which slots."""

    def __init__(self, ranges: list[tuple[int, int, Address]]) -> None:
        self._ranges = sorted(ranges)
        self._moved: dict[int, Address] = {}

    @classmethod
    def from_reply(cls, reply: list[Any], asked: Address) -> _Layout:
        """From CLUSTER SLOTS; a node that does not know its name is the one that was asked."""
        ranges = []
        for first, last, (host, port, *_), *_replicas in reply:
            name = host.decode() if isinstance(host, bytes) else host
            ranges.append((int(first), int(last), (name or asked[0], int(port))))
        return cls(ranges)

    @property
    def addresses(self) -> list[Address]:
        return sorted({address for _, _, address in self._ranges} | set(self._moved.values()))

    def find(self, slot: int | None) -> Address:
        """The slot's node; any for None."""
        if slot in self._moved:
            return self._moved[slot]
        wanted = slot or 0
        at = bisect_right(self._ranges, wanted, key=lambda held: held[0]) - 1
        if at >= 0 and wanted <= self._ranges[at][1]:
            return self._ranges[at][2]
        raise rx.ClusterDownError(f"no node holds slot {wanted}")

    def move(self, slot: int, address: Address) -> None:
        """Note what a node said of one slot."""
        self._moved[slot] = address


def _slot(args: tuple[Any, ...]) -> int | None:
    """The slot of a command's first key; None for a command without one."""
    if len(args) == 1 or args[0] in _KEYLESS_COMMANDS:
        return None
    key = args[3] if args[0] in _SCRIPT_COMMANDS else args[1]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())
