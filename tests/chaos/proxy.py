"""A TCP relay that cuts a connection within what it carries, stalls, and changes its target."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from tests.chaos.stores import HOST, Address, free_port

CHUNK_BYTES = 1 << 16


@dataclass
class Cut:
    """What to cut: the next chunk of that direction, after this share of its bytes.

    With a `marker` only a reply to a request that holds it, such as the call of a script.
    """

    in_reply: bool
    share: float
    marker: bytes = b""
    smallest: int = 1
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Link:
    """One relayed connection."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    marked: bool = False

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Relays its own address to `target`, on a thread of its own."""

    def __init__(self, target: Address) -> None:
        self.address: Address = (HOST, free_port())
        self._target = target
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut: Cut | None = None
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._relay, *self.address))

    @property
    def target(self) -> str:
        """As a gRPC target."""
        return f"{HOST}:{self.address[1]}"

    def switch(self, target: Address) -> None:
        """Relay to another address from now on, and cut what is connected to the old one."""

        def change() -> None:
            self._target = target
            for link in list(self._links):
                link.abort()

        self._loop.call_soon_threadsafe(change)

    def cut(self, cut: Cut, limit_s: float = 20.0) -> bool:
        """Cut one connection as soon as something fits; whether something did."""
        self._cut = cut
        happened = cut.done.wait(limit_s)
        self._cut = None
        return happened

    def stall(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.set)

    def close(self) -> None:
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link = _Link([writer])
        self._links.add(link)
        try:
            there, onwards = await asyncio.open_connection(*self._target)
            link.writers.append(onwards)
            both = (self._pump(link, reader, onwards, False), self._pump(link, there, writer, True))
            await asyncio.gather(*both)
        except (OSError, asyncio.CancelledError):
            pass  # whoever was connected sees the end of the connection
        finally:
            link.abort()
            self._links.discard(link)
            self._tasks.discard(task)

    async def _pump(self, link: _Link, reader, writer, is_reply: bool) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._flowing.wait()
            cut = self._cut
            if cut is not None and not is_reply and cut.marker and cut.marker in data:
                link.marked = True
            if cut is not None and _fits(cut, link, data, is_reply):
                self._cut = None
                writer.write(data[: int(len(data) * cut.share)])
                cut.done.set()
                break
            writer.write(data)
            await writer.drain()
        link.abort()


def _fits(cut: Cut, link: _Link, data: bytes, is_reply: bool) -> bool:
    if is_reply != cut.in_reply or len(data) < cut.smallest:
        return False
    return link.marked if is_reply and cut.marker else cut.marker in data
