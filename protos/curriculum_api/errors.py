"""The errors of the contract, the same on both sides of the wire.

    CurriculumError
    ├─ InvalidRequestError (ValueError)            INVALID_ARGUMENT      the caller's bug; names the field
    ├─ UnauthenticatedError (PermissionError)      UNAUTHENTICATED
    ├─ PermissionDeniedError (PermissionError)     PERMISSION_DENIED
    ├─ NotFoundError (LookupError)                 NOT_FOUND
    ├─ AlreadyExistsError                          ALREADY_EXISTS
    ├─ StateError (RuntimeError)                   FAILED_PRECONDITION   someone must change something first
    ├─ ConflictError                               ABORTED               an older timeline: redo the read
    ├─ OverloadedError                             RESOURCE_EXHAUSTED
    ├─ StoreUnavailableError (ConnectionError)     UNAVAILABLE           retry the call
    ├─ DeadlineError (TimeoutError)                DEADLINE_EXCEEDED     retry the call
    └─ CorruptStateError                           DATA_LOSS

The server turns an error into its status by `STATUS_NAMES`; the client reads the same table
backwards. Anything else is INTERNAL.
"""

from __future__ import annotations


class CurriculumError(Exception):
    """Anything this service refuses or fails to do."""


class InvalidRequestError(CurriculumError, ValueError):
    """A field has a value that is not allowed; nothing of the request was applied."""


class UnauthenticatedError(CurriculumError, PermissionError):
    """The caller gave no valid token."""


class PermissionDeniedError(CurriculumError, PermissionError):
    """The caller's role does not allow the call."""


class NotFoundError(CurriculumError, LookupError):
    """The named run, prompt, batch or checkpoint is not there."""


class AlreadyExistsError(CurriculumError):
    """The name is taken by something with other content."""


class StateError(CurriculumError, RuntimeError):
    """The call does not fit the state; someone must change something first."""


class ConflictError(CurriculumError):
    """The caller acts on an older timeline; it must read again."""


class OverloadedError(CurriculumError):
    """A bound of the service is reached; try again later."""

    retry_after_s: float | None = None
    """How long the service asks to wait; None when it does not say."""


class StoreUnavailableError(CurriculumError, ConnectionError):
    """The service or its store cannot be reached; the same call may be repeated."""


class DeadlineError(CurriculumError, TimeoutError):
    """The call took longer than its deadline; the same call may be repeated."""


class CorruptStateError(CurriculumError):
    """The store does not hold what the ledger's invariants demand."""


STATUS_NAMES: dict[type[CurriculumError], str] = {
    InvalidRequestError: "INVALID_ARGUMENT",
    UnauthenticatedError: "UNAUTHENTICATED",
    PermissionDeniedError: "PERMISSION_DENIED",
    NotFoundError: "NOT_FOUND",
    AlreadyExistsError: "ALREADY_EXISTS",
    StateError: "FAILED_PRECONDITION",
    ConflictError: "ABORTED",
    OverloadedError: "RESOURCE_EXHAUSTED",
    StoreUnavailableError: "UNAVAILABLE",
    DeadlineError: "DEADLINE_EXCEEDED",
    CorruptStateError: "DATA_LOSS",
}
"""Each error with the name of its gRPC status, in both directions."""
