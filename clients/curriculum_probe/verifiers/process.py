"""The worker's side of one process in which verifiers run.

A process of our own and not a library's: pebble's pool, the best kept with a timeout for each task,
looks for timeouts ten times a second, hands one completion at a time from thread to thread, loads
the worker's main module in each process, and is under the LGPL. What it spares is this file.

The limit on memory is one on address space (`RLIMIT_AS`), the only one that a process can keep by
itself: mapped libraries count, whether used or not. macOS does not enforce it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from curriculum_probe.verifiers.base import UnverifiableError
from curriculum_probe.verifiers.registry import Task
from curriculum_probe.verifiers.verdict import OUT_OF_MEMORY, Verdict

LOAD_TIMEOUT_S = 60.0
"""To start and to import a verifier: sympy takes seconds on a busy machine, torch more."""
LATE_S = 0.05
"""How long an answer is looked for after its time: it may be there, and this process late."""
_STDERR = 2
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Numerical libraries map memory for each thread, one a core; processes are parallel already."""
# The worker's own paths, as for multiprocessing's children; -P, so that the working directory does
# not come before the standard library until then.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from curriculum_probe.verifiers.child import main; main()"
)


class ProcessError(Exception):
    """The process crashed or took too long; the message says how."""


class VerifierProcess:
    """One process, which has one prompt at a time. It starts when needed, after a failure again."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._popen: subprocess.Popen[bytes] | None = None
        self._is_used = self._is_closed = False
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def begin(self, task: Task, completions: list[str], timeout_s: float) -> None:
        """Have the task's verifier loaded and prepared; its verdicts follow, in order.

        Raises:
            UnverifiableError: the verifier cannot be loaded, or refuses the payload.
            ProcessError: the process failed over it.
        """
        fields = {"kind": task.kind, "target": task.target, "payload_json": task.payload_json}
        content = json.dumps({**fields, "completions": completions}).encode() + b"\n"
        if self._is_used:
            # A failure may be due to what the process did before, so it counts in a new one only.
            with contextlib.suppress(ProcessError):
                await self._begin(content, timeout_s)
                return
        await self._begin(content, timeout_s)

    async def verdict(self, timeout_s: float) -> Verdict:
        """The next completion's.

        Raises:
            ProcessError: the process failed over it.
        """
        word, value = await self._receive(timeout_s)
        return Verdict(value) if word == "score" else Verdict(None, str(value))

    async def kill(self) -> str:
        """End it, and the processes that it started; how it ended."""
        popen, self._popen = self._popen, None
        if popen is None:
            return "was stopped"
        # Not waited for yet, so the number is still its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
        self._writer.close()
        return _ending(await asyncio.to_thread(popen.wait))

    async def close(self) -> None:
        """End it for good."""
        self._is_closed = True
        await self.kill()

    async def _begin(self, content: bytes, timeout_s: float) -> None:
        if self._popen is None:
            await self._start()
        self._writer.write(content)
        for allowed_s in (max(LOAD_TIMEOUT_S, timeout_s), timeout_s):
            word, because = await self._receive(allowed_s)
            if word == "unusable":
                raise UnverifiableError(because)
            if word == "broken":  # for lack of memory, it may be, or half imported
                await self.kill()
                raise ProcessError(because)
        self._is_used = True

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            try:
                if self._is_closed:
                    raise ProcessError("the verifiers were stopped")
                self._popen = self._spawned(theirs.fileno())
            except OSError as error:
                raise ProcessError(f"its process did not start: {error.strerror}") from error
            finally:
                if self._popen is None:
                    self._writer.close()
        self._is_used = False

    def _spawned(self, connection: int) -> subprocess.Popen[bytes]:
        numbers = [str(number) for number in (connection, os.getpid(), self._memory_bytes)]
        # A session of its own: a signal to the worker's group is none to the verifiers.
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, *numbers, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            pass_fds=[connection],
            start_new_session=True,
            env={**_ONE_THREAD, **os.environ},
        )

    async def _receive(self, timeout_s: float) -> tuple[str, Any]:
        """The next line's word, and what belongs to it; without a line, the process is no more."""
        line = await self._line(timeout_s) or await self._line(LATE_S)
        if line is None:
            await self.kill()
            raise ProcessError(f"took longer than {timeout_s:g} s")
        try:
            word, value = json.loads(line)
        except (TypeError, ValueError):  # cut off by its end, or not the child's
            raise ProcessError(f"its process {await self.kill()}") from None
        return word, value

    async def _line(self, timeout_s: float) -> bytes | None:
        """The next line, None in time, or what there was of it before the process ended."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reader.readline()
        except TimeoutError:
            return None
        except (OSError, ValueError):  # reset, or longer than any answer
            return b""


def _ending(code: int) -> str:
    if code == OUT_OF_MEMORY:
        return "ran out of memory"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
