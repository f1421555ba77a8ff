"""The pool of processes in which verifiers run.

A verifier is others' code on what a model wrote, so it may crash, hang, or eat the memory. Each
runs in a process that has one completion at a time, so that this costs one attempt's verdict: the
process is killed and another one goes on. Only `http` runs in the worker, for it merely waits.

**Do not execute model-written code in a verifier.** A process with a limit on time and memory is
no sandbox: it may read, write and call whatever the worker may. Run such code in a sandbox of your
own, and ask it from here: behind a URL (`http`), or by its client (`python:module:function`).

A payload names code and addresses that a prober uses, so who may add prompts is trusted with it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from curriculum_api.errors import InvalidRequestError
from curriculum_probe.verifiers.base import UnverifiableError
from curriculum_probe.verifiers.http import RewardServers
from curriculum_probe.verifiers.process import ProcessError, VerifierProcess
from curriculum_probe.verifiers.registry import Registry, Task
from curriculum_probe.verifiers.verdict import Verdict

__all__ = ["UnverifiableError", "Verdict", "VerifierPool"]

MIN_MEMORY_BYTES = 64 * 2**20
"""Below, Python itself hardly starts."""
CHUNK_SIZE = 8
"""Completions that a process is given at a time: enough that preparing weighs little, so few that
the processes share a group of slow ones."""


class VerifierPool:
    """Scores completions by what their prompts' payloads say; an async context manager.

    Any number of calls may wait at once, and are served in turn. In groups of 8, `exact` gives some
    20,000 verdicts/s, math-verify 3,000 per process; a verdict alone takes .3 ms, one that needs a
    new process 100 ms more, and what its verifier takes to import.
    """

    def __init__(
        self,
        *,
        process_count: int,
        timeout_s: float,
        memory_bytes: int,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            process_count: how many verifiers run at once. Each process starts when it is needed.
            timeout_s: for one completion, and for preparing a payload.
            memory_bytes: a process' address space (`RLIMIT_AS`), mapped libraries included:
                Python's 20 MB, with math-verify 62, Reasoning Gym 195, torch 600 and more.
            defaults: what payloads say that have no such entry: `verifier`, `url`, `tolerance`…

        Raises:
            InvalidRequestError: a limit is out of its range, or a default is none of JSON's values.
            StateError: two verifiers have one name.
        """
        if process_count < 1:
            raise InvalidRequestError(f"process_count={process_count}: must be at least 1")
        if not 0 < timeout_s < math.inf:
            raise InvalidRequestError(f"timeout_s={timeout_s}: must be positive and finite")
        if memory_bytes < MIN_MEMORY_BYTES:
            raise InvalidRequestError(
                f"memory_bytes={memory_bytes}: must be at least {MIN_MEMORY_BYTES}"
            )
        self._timeout_s = timeout_s
        self._registry = Registry(defaults or {})
        self._servers = RewardServers(timeout_s)
        self._processes = [VerifierProcess(memory_bytes) for _ in range(process_count)]
        # Chunks wait for this first, so that whoever prepares has few before it.
        self._verifying = asyncio.Semaphore(process_count)
        # The one used last comes first: no more are started than are needed.
        self._idle = asyncio.LifoQueue[VerifierProcess]()
        for process in reversed(self._processes):
            self._idle.put_nowait(process)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill all processes; attempts in work get no score."""
        await asyncio.gather(*[process.close() for process in self._processes])

    def check(self, payload_json: str) -> None:
        """See that a payload names a verifier, and has what a built-in one needs; quickly, without
        importing user code.

        Raises:
            UnverifiableError: nothing could be said of this prompt's completions.
        """
        self._registry.task(payload_json)

    async def prepare(self, payload_json: str) -> None:
        """Like `check`, but load the verifier and have it prepared, in a process.

        Raises:
            UnverifiableError: nothing could be said of this prompt's completions.
        """
        task = self._registry.task(payload_json)
        if task.kind == "http":
            return
        async with self._process() as process:
            try:
                await process.begin(task, [], self._timeout_s)
            except ProcessError as error:
                raise UnverifiableError(f"preparing the verifier: {error}") from error

    async def verify(self, payload_json: str, completions: Sequence[str]) -> list[Verdict]:
        """One verdict for each completion, in order, whatever the verifier does."""
        try:
            task = self._registry.task(payload_json)
        except UnverifiableError as error:
            return [Verdict(None, str(error))] * len(completions)
        if task.kind == "http":
            return await self._servers.verdicts(task.payload, completions)
        firsts = range(0, len(completions), CHUNK_SIZE)
        chunks = [list(completions[first : first + CHUNK_SIZE]) for first in firsts]
        answers = await asyncio.gather(*[self._verify_chunk(task, chunk) for chunk in chunks])
        return [verdict for verdicts in answers for verdict in verdicts]

    async def _verify_chunk(self, task: Task, completions: list[str]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        async with self._verifying, self._process() as process:
            while rest := completions[len(verdicts) :]:
                try:
                    await process.begin(task, rest, self._timeout_s)
                except (UnverifiableError, ProcessError) as error:
                    return verdicts + [Verdict(None, str(error))] * len(rest)
                try:
                    for _ in rest:
                        verdicts.append(await process.verdict(self._timeout_s))
                except ProcessError as error:
                    verdicts.append(Verdict(None, str(error)))
        return verdicts

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[VerifierProcess]:
        process = await self._idle.get()
        try:
            yield process
        except UnverifiableError:
            raise
        except BaseException:  # cancelled, and the process is not: what it answers is nobody's
            await process.kill()
            raise
        finally:
            self._idle.put_nowait(process)
