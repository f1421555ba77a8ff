"""How an error crosses the wire, read backwards, and how a call that was not judged is repeated."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import grpc

from curriculum_api import errors

AWAY = (errors.StoreUnavailableError, errors.DeadlineError, errors.OverloadedError)
"""The service did not judge the call, so the same call may be repeated. Every RPC is idempotent."""

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 5.0
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata, by gRPC's own convention: when a refused call may be repeated."""
MOST_PUSHBACK_S = 30.0
"""Whatever a server or proxy asks for beyond this is not waited for."""

# Not the global generator, whose seed belongs to the trainer; and forked ranks must differ.
_jitter = random.SystemRandom()

_ERRORS_BY_STATUS: dict[grpc.StatusCode, type[errors.CurriculumError]] = {
    grpc.StatusCode[name]: error for error, name in errors.STATUS_NAMES.items()
}


def error_from_rpc(rpc_error: grpc.RpcError) -> errors.CurriculumError:
    """The contract's error that a failed call stands for, with gRPC's as its cause.

    A status outside the contract (INTERNAL, UNKNOWN, UNIMPLEMENTED) becomes the base class, with
    the status in front, because the details of such a status often say little. CANCELLED is what a
    server that is stopping answers to calls that reach it too late: it is away.
    """
    error = _without_cause(rpc_error)
    error.__cause__ = rpc_error
    return error


def _without_cause(rpc_error: grpc.RpcError) -> errors.CurriculumError:
    if not isinstance(rpc_error, grpc.Call | grpc.aio.AioRpcError):
        return errors.CurriculumError(str(rpc_error) or type(rpc_error).__name__)
    status, details = rpc_error.code(), rpc_error.details() or ""
    if status is grpc.StatusCode.CANCELLED:
        return errors.StoreUnavailableError(f"{status.name}: {details or 'the server is stopping'}")
    if status not in _ERRORS_BY_STATUS:
        return errors.CurriculumError(f"{status.name}: {details}")
    error = _ERRORS_BY_STATUS[status](details or status.name)
    if isinstance(error, errors.OverloadedError):
        error.retry_after_s = _pushback_s(rpc_error.trailing_metadata() or ())
    return error


def _pushback_s(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    given = next((str(value) for key, value in metadata if key == PUSHBACK_KEY), "")
    return min(int(given) / 1e3, MOST_PUSHBACK_S) if given.isdecimal() else None


def delays() -> Iterator[float]:
    """Seconds to wait before each repetition, without end: doubling up to a bound, with jitter."""
    delay_s = FIRST_DELAY_S
    while True:
        yield delay_s * _jitter.uniform(0.5, 1.0)
        delay_s = min(2 * delay_s, LAST_DELAY_S)


def pause_s(error: Exception, delay_s: float) -> float:
    """How long to wait after an error when it would be `delay_s` by itself: no less than the
    service asks for, and not at the same moment as all others that it told the same."""
    asked_s = error.retry_after_s if isinstance(error, errors.OverloadedError) else None
    return delay_s if asked_s is None else max(delay_s, asked_s * _jitter.uniform(1.0, 1.5))
