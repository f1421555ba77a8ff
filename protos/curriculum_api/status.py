"""How an error crosses the wire, read backwards, and the options that every channel shares."""

from __future__ import annotations

import grpc

from curriculum_api import errors, limits

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
)
"""gRPC's own receive limit of 4 MiB is below what the contract allows."""

_ERRORS_BY_STATUS: dict[grpc.StatusCode, type[errors.CurriculumError]] = {
    grpc.StatusCode[name]: error for error, name in errors.STATUS_NAMES.items()
}


def error_from_rpc(rpc_error: grpc.RpcError) -> errors.CurriculumError:
    """The contract's error that a failed call stands for.

    A status outside the contract (INTERNAL, UNKNOWN, UNIMPLEMENTED, CANCELLED) becomes the base
    class, with the status in front, because the details of such a status often say little.
    """
    if not isinstance(rpc_error, grpc.Call):
        return errors.CurriculumError(str(rpc_error) or type(rpc_error).__name__)
    status = rpc_error.code()
    details = rpc_error.details() or ""
    error = _ERRORS_BY_STATUS.get(status)
    if error is None:
        return errors.CurriculumError(f"{status.name}: {details}")
    return error(details or status.name)
