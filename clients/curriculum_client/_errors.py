"""Foreign errors become ours, by the contract's table read backwards."""

from __future__ import annotations

import grpc

from curriculum_api.errors import (
    STATUS_NAMES,
    CurriculumError,
    DeadlineError,
    OverloadedError,
    StoreUnavailableError,
    UnauthenticatedError,
)

_BY_STATUS = {grpc.StatusCode[name]: error for error, name in STATUS_NAMES.items()}

AWAY = (StoreUnavailableError, DeadlineError, OverloadedError)
"""The service did not judge the call, so the same call may be repeated. Every RPC is idempotent."""

UNJUDGED = (*AWAY, UnauthenticatedError)
"""A report that met one of these was not refused and is kept."""


def from_rpc(error: grpc.RpcError) -> CurriculumError:
    """Our error for gRPC's, with its text and with gRPC's error as the cause."""
    code, detail = error.code(), error.details() or ""
    kind = _BY_STATUS.get(code)
    ours = kind(detail or code.name) if kind else CurriculumError(f"{code.name}: {detail}")
    ours.__cause__ = error
    return ours
