"""Stores as processes: started, killed, frozen, starved of disk space, replicated."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis

from curriculum_server.store.embedded import binary_path

Address = tuple[str, int]
HOST = "127.0.0.1"
START_LIMIT_S = 30.0
_ports = random.SystemRandom()


def free_port() -> int:
    """A port below those that the system hands out, so that it is still free for a restart."""
    while True:
        port = _ports.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


class Store:
    """A Valkey or Redis over one folder, with an append-only file."""

    def __init__(self, folder: Path, appendfsync: str = "always", binary: Path | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.address: Address = (HOST, free_port())
        self._appendfsync = appendfsync
        self._binary = binary or binary_path()
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.address[1]}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> redis.Redis:
        if self._client is None:
            self._client = redis.Redis(*self.address, socket_timeout=30)
        return self._client

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *flags: str) -> Store:
        """Start it and wait until it has loaded its file."""
        settings = {
            **{"port": str(self.address[1]), "bind": HOST, "dir": str(self.folder), "save": ""},
            **{"appendonly": "yes", "appendfsync": self._appendfsync, "daemonize": "no"},
            **{"logfile": str(self.folder / "log"), "repl-diskless-sync-delay": "0"},
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        # Python ignores SIGXFSZ, and so shall the store: past a file size limit its writes fail
        # as they do on a full disk, instead of ending it.
        self._process = subprocess.Popen(
            [str(self._binary), *arguments, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            restore_signals=False,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.client.ping()
            except (redis.ConnectionError, redis.TimeoutError):
                time.sleep(0.01)
            else:
                return self
        raise AssertionError(f"the store did not start: {self.log[-2000:]}")

    def kill(self) -> None:
        """kill -9: what it wrote reached the kernel, what it held in memory is gone."""
        assert self._process is not None
        self._process.kill()
        self.wait_until_dead()

    def stop(self) -> None:
        """SIGTERM: it writes what it holds."""
        if self.is_running:
            assert self._process is not None
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self.wait_until_dead()

    def wait_until_dead(self, limit_s: float = 30.0) -> None:
        assert self._process is not None
        self._process.wait(limit_s)
        if self._client is not None:
            self._client.close()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def fill_disk(self, room_bytes: int) -> None:
        """Have the disk full, but for so many bytes."""
        limit_files(self.pid, self.folder, room_bytes)

    def free_disk(self) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, unlimited)

    def files(self) -> list[Path]:
        """The parts of its append-only file, the newest last."""
        return append_only_files(self.folder)

    def empty(self) -> None:
        """Remove its data; it must be dead."""
        assert not self.is_running
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        if self.is_running:
            assert self._process is not None
            self._process.send_signal(signal.SIGKILL)
            self.wait_until_dead()
        if self._client is not None:
            self._client.close()


def append_only_files(folder: Path) -> list[Path]:
    """What a store over this folder appends to, the newest last; those before are its base."""
    return sorted(
        folder.glob("appendonlydir/*.incr.aof"), key=lambda path: int(path.name.split(".")[-3])
    )


def limit_files(pid: int, folder: Path, room_bytes: int) -> None:
    """Let no file of the process grow beyond its newest append-only file and `room_bytes` more."""
    limit = append_only_files(folder)[-1].stat().st_size + room_bytes
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def replica_of(
    primary: Store, folder: Path, appendfsync: str, through: Address | None = None
) -> Store:
    """A second store that has everything the first one has, and follows it, perhaps through a
    proxy."""
    host, port = through or primary.address
    replica = Store(folder, appendfsync).start("--replicaof", f"{host} {port}")
    _wait(lambda: replica.client.info("replication")["master_link_status"] == "up")
    wait_until_synced(primary, replica)
    return replica


def wait_until_synced(primary: Store, replica: Store) -> None:
    """Until the replica has applied what the primary had written when this was called."""
    offset = primary.client.info("replication")["master_repl_offset"]
    _wait(lambda: replica.client.info("replication")["slave_repl_offset"] >= offset)


def _wait(condition, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the replica did not catch up"
        time.sleep(0.01)
