"""What runs inside a verifiers' process: it loads, prepares and scores what it is told to.

It reads tasks from a socket, one line of JSON each, and answers with lines: `loaded`, `prepared`
and then a `score` or `failed` for each completion in order. Instead of these comes `unusable`, if
the verifier refuses the payload, or `broken`, both with a reason. All is done in the main thread,
the only one where Python code may handle signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import resource
import signal
import socket
import sys
import traceback
from importlib.metadata import EntryPoint
from typing import Any

from curriculum_probe.verifiers.base import Scorer, UnverifiableError
from curriculum_probe.verifiers.verdict import OUT_OF_MEMORY, ScoreError, score_of

_PREPARED_COUNT = 32
"""Scorers kept: those of the prompts in work, and a few more."""
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve the parent until it closes the connection."""
    number, parent_pid, memory_bytes = map(int, sys.argv[1:4])
    connection = socket.socket(fileno=number)
    connection.set_inheritable(False)
    _confine(parent_pid, memory_bytes)
    # Given to each process of a group, these are for the worker: it finishes what is in hand.
    # A handler, unlike SIG_IGN, is not passed on to the programs that a verifier starts.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: None)
    with connection, connection.makefile("rb") as tasks:
        for line in tasks:
            try:
                _serve(json.loads(line), connection)
            except MemoryError:
                os._exit(OUT_OF_MEMORY)


def _confine(parent_pid: int, memory_bytes: int) -> None:
    """Limit the memory, leave no core files, and end with the parent."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    with contextlib.suppress(OSError, ValueError):  # macOS knows the limit, but may refuse it
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def _serve(task: dict[str, Any], connection: socket.socket) -> None:
    process_id = os.getpid()

    def answer(word: str, value: float | str = "") -> None:
        if os.getpid() != process_id:  # a verifier has forked, and this is its copy
            os._exit(1)
        try:
            connection.sendall(json.dumps([word, value]).encode() + b"\n")
        except OSError:  # the parent has gone
            os._exit(0)

    try:
        _loaded(task["target"])
        answer("loaded")
        scorer = _prepared(task["kind"], task["target"], task["payload_json"])
    except MemoryError:
        raise
    except UnverifiableError as error:
        answer("unusable", _line(str(error)))
    except BaseException as error:  # the boundary: others' code raises anything
        while error.__cause__:
            error = error.__cause__
        answer("broken", _line(f"{type(error).__name__}: {error}"))
    else:
        answer("prepared")
        for completion in task["completions"]:
            answer(*_scored(scorer, completion))


def _scored(scorer: Scorer, completion: str) -> tuple[str, float | str]:
    try:
        return "score", score_of(scorer(completion))
    except ScoreError as error:
        return "failed", str(error)
    except MemoryError:
        raise
    except BaseException as error:  # the boundary: others' code raises anything, SystemExit too
        return "failed", _described(error)


@functools.cache
def _loaded(target: str) -> Any:
    return EntryPoint(name="", value=target, group="").load()


@functools.lru_cache(maxsize=_PREPARED_COUNT)
def _prepared(kind: str, target: str, payload_json: str) -> Scorer:
    loaded, payload = _loaded(target), json.loads(payload_json)
    if kind == "function":
        if not callable(loaded):
            raise UnverifiableError(f"verifier='python:{target}': is not a function")
        return lambda completion: loaded(completion, payload)
    scorer: Scorer = loaded.prepare(payload)
    return scorer


def _described(error: BaseException) -> str:
    """The error's type and place; its message may quote the completion, and would be logged."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
