"""Servers and stores as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import redis

from curriculum_server.store.embedded import binary_path


class ServerProcess:
    """`curriculum-server` as a process of its own."""

    def __init__(self, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("CURRICULUM_")}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "curriculum_server.app", *flags],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**inherited, **(environment or {})},
            start_new_session=True,  # so that signals to its group reach nobody else
        )
        self.pid = self._process.pid
        self.printed = ""

    def wait_until_serving(self) -> ServerProcess:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.printed += line
            if "listening on" in line:
                return self
        raise AssertionError(f"it did not start: {self.log}")

    @property
    def address(self) -> str:
        return self.line("listening on")

    def line(self, beginning: str) -> str:
        """What stands behind the beginning of a printed line."""
        (rest,) = (
            line.removeprefix(beginning).strip()
            for line in self.printed.splitlines()
            if line.startswith(beginning)
        )
        return rest

    @property
    def log(self) -> str:
        """What it wrote to standard error so far."""
        position = self._log.tell()
        self._log.seek(0)
        text = self._log.read()
        self._log.seek(position)
        return text

    @property
    def children(self) -> list[int]:
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def signal(self, number: int, *, to_group: bool = False) -> None:
        os.killpg(self.pid, number) if to_group else os.kill(self.pid, number)

    def exit_code(self, timeout_s: float = 30.0) -> int:
        """Wait for its end."""
        assert self._process.stdout is not None
        code = self._process.wait(timeout_s)
        self.printed += self._process.stdout.read()
        return code

    def close(self) -> None:
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()
        self._log.close()


class PlainValkey:
    """A Valkey that no server owns: it can be stopped, started again and made to wait."""

    def __init__(self) -> None:
        # A socket's path is limited to about 100 bytes, so it is not in pytest's folder.
        self._folder = tempfile.TemporaryDirectory(prefix="plain-valkey-")
        self.socket = f"{self._folder.name}/valkey.sock"
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> redis.Redis:
        """A client of it, once it answers."""
        settings = {
            **{"port": "0", "unixsocket": self.socket, "dir": self._folder.name},
            **{"appendonly": "yes", "save": "", "logfile": f"{self._folder.name}/log"},
        }
        flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [str(binary_path()), *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
        )
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.01)
            else:
                return client
        raise AssertionError("the valkey did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()
