"""Servers as processes that come back on the address they had."""

from __future__ import annotations

import importlib.util
import signal
from contextlib import suppress
from pathlib import Path

from tests.chaos.stores import HOST, free_port
from tests.server.processes import ServerProcess


class Server:
    """`curriculum-server` on a fixed address, over whatever `flags` say."""

    def __init__(self, *flags: str) -> None:
        self.address = f"{HOST}:{free_port()}"
        self._flags = (*flags, "--metrics", "off", "--log-level", "warning", "--drain-s", "2")
        self._process: ServerProcess | None = None
        self.logs: list[str] = []
        """What its former processes wrote."""

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def children(self) -> list[int]:
        """Its embedded store."""
        return self._running.children

    def launch(self, environment: dict[str, str] | None = None) -> None:
        """Start it, and let others start meanwhile."""
        flags = ("--listen", self.address, *self._flags)
        self._process = ServerProcess(*flags, environment=environment)

    def wait_until_serving(self) -> None:
        self._running.wait_until_serving()

    def start(self, environment: dict[str, str] | None = None) -> None:
        self.launch(environment)
        self.wait_until_serving()

    def kill(self) -> None:
        self._running.signal(signal.SIGKILL)
        self._end()

    def stop(self) -> None:
        """Let it drain."""
        self._running.signal(signal.SIGTERM)
        self._end()

    def freeze(self) -> None:
        self._running.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._running.signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self.thaw()
                self._running.signal(signal.SIGTERM)
            self._end()

    @property
    def log(self) -> str:
        """What all of its processes wrote."""
        return "".join([*self.logs, self._process.log if self._process else ""])

    @property
    def _running(self) -> ServerProcess:
        assert self._process is not None
        return self._process

    def _end(self) -> None:
        process = self._running
        process.exit_code()
        self.logs.append(process.log)
        process.close()
        self._process = None


class WallClock:
    """The wall clock of a process under libfaketime, which this moves; the monotonic one stays."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "clock"
        self.move(0)

    def move(self, offset_s: int) -> None:
        """Have it show so much more than the true time, from its next reading on."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(f"{offset_s:+d}")
        fresh.replace(self._path)  # as a whole, for it is read at any moment

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(faketime_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def faketime_library() -> Path | None:
    """The library of the PyPI package `libfaketime`; None where it is not installed."""
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return path if path.exists() else None
