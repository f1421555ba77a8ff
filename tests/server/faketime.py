"""A store whose clock a test moves, so that leases run out without waiting.

The servers take their time from the store, so it is enough to deceive the store: libfaketime is
loaded into its process alone and reads by how much to falsify the clock from a file, on every call.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest
import redis

from tests.server.processes import PlainValkey

SEEN_WITHIN_S = 0.5
"""The clock shows an offset when it is this near to it; less than the shortest move of a second."""


class ClockedValkey(PlainValkey):
    """A `PlainValkey` whose clock can be moved, forward and back; between moves it runs as usual.

    Skips the test where libfaketime was not built or does not work.
    """

    def __init__(self) -> None:
        super().__init__()
        self._file = Path(self._folder.name) / "offset"
        self._offset_s = 0
        self._client: redis.Redis | None = None
        self.environment = {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            # Its timers stay true, or it would stand still until a clock that moved back caught up.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def start(self) -> redis.Redis:
        self._write()
        self._client = super().start()
        return self._client

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        super().stop()

    def now_s(self) -> int:
        """The second that the store's clock shows."""
        return int(self._read())

    def move(self, seconds: int) -> None:
        """Move the clock by so many seconds, and wait until the store goes by it."""
        self._offset_s += seconds
        self._write()
        deadline = time.monotonic() + 10
        while abs(self._read() - time.time() - self._offset_s) > SEEN_WITHIN_S:
            assert time.monotonic() < deadline, "the store did not take the new time"

    def _read(self) -> float:
        assert self._client is not None
        second, microsecond = self._client.time()
        return second + microsecond / 1e6

    def _write(self) -> None:
        # As a whole, for it is read at any moment.
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{self._offset_s:+d}")
        os.replace(fresh, self._file)


def library() -> str:
    """The shared library of the libfaketime wheel, which pip builds for this machine."""
    if sys.platform != "linux":
        pytest.skip("a process's clock can be moved on Linux only")
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        pytest.skip("libfaketime is not installed; it is one of the extra `dev`")
    path = Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    if not path.exists():
        pytest.skip(f"libfaketime was installed without {path}; it needs a C compiler and make")
    return str(path)
