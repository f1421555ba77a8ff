"""What a forked child must forget.

A child inherits the parent's connection, and two processes on one connection corrupt it. So in
the child every client drops its channel without closing it, and opens its own when it is used.

grpc itself hangs in such a child, deadlines and all, unless its fork support is on, and it reads
the switch once, when it is imported. Hence the switch is set here, before grpc is imported. Where
it came too late, or where an asyncio client has connected, whose threads grpc cannot stop for the
fork, a child's call raises instead of hanging or crashing.
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Protocol

from curriculum_api.errors import StateError

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")


class Forkable(Protocol):
    """Something with per-process state. It may have a `before_fork` too."""

    def after_fork(self) -> None:
        """Forget, in the child, what belongs to the parent."""


class ProcessLock:
    """A lock that a forked child and a copy have anew, whoever holds the original."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        watch(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[ProcessLock], tuple[()]]:
        return ProcessLock, ()

    def after_fork(self) -> None:
        """Be free: a thread that held it is not in the child."""
        self._lock = threading.Lock()


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_connected = False
_connected_by_asyncio = False
_stranded = ""


def install() -> None:
    """Arrange for children to forget. Systems without fork need nothing."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_child=_after_in_child)


def watch(forkable: Forkable) -> None:
    """Tell this object, for as long as it lives, when its process is a new child."""
    _watched.add(forkable)


def before_connecting(*, by_asyncio: bool) -> None:
    """Raise where a new channel would hang.

    Raises:
        StateError: The process was forked from one that had connected and cannot be forked since.
    """
    global _connected, _connected_by_asyncio
    if _stranded:
        raise StateError(_stranded)
    _connected = True
    _connected_by_asyncio = _connected_by_asyncio or by_asyncio


def _before() -> None:
    for forkable in _all_watched():
        getattr(forkable, "before_fork", _nothing)()


def _nothing() -> None:
    """What most do before a fork."""


def _after_in_child() -> None:
    global _stranded
    if _connected_by_asyncio:
        _stranded = (
            "AsyncTrainerClient: had connected before this process was forked, which grpc does not "
            "survive; start workers with 'spawn' or before the first call"
        )
    elif _connected and not _grpc_supports_fork():
        _stranded = (
            "GRPC_ENABLE_FORK_SUPPORT=0: must be 1 before grpc is imported, since a client had "
            "connected before this process was forked; or start workers with 'spawn'"
        )
    for forkable in _all_watched():
        forkable.after_fork()


def _all_watched() -> list[Forkable]:
    while True:
        try:
            return list(_watched)
        except RuntimeError:  # another thread added one meanwhile
            continue


def _grpc_supports_fork() -> bool:
    from grpc._cython import cygrpc

    enabled = getattr(cygrpc, "is_fork_support_enabled", None)
    return enabled is None or bool(enabled())
