"""What is round every RPC: roles, decoding, statuses, a time limit, log lines and metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from curriculum_api.errors import (
    STATUS_NAMES,
    CurriculumError,
    DeadlineError,
    InvalidRequestError,
)
from curriculum_server import metrics
from curriculum_server.security import Tokens
from curriculum_server.validate import RUN_ID

REQUEST_LIMIT_S = 60.0
"""No call is meant to take longer; whoever waits for one that does can repeat it."""
ERROR_KEY = "curriculum-error"
"""Trailing metadata: the name of the error's class."""
MAX_DETAILS = 500
"""Characters of a status; gRPC's limit for all metadata is 8 KiB, percent-encoded."""

Serve = Callable[[Any], Awaitable[Message | bytes]]

access_log = logging.getLogger("curriculum_server.access")
logger = logging.getLogger(__name__)


def generic_handler(
    descriptor: ServiceDescriptor, servicer: object, tokens: Tokens
) -> grpc.GenericRpcHandler:
    """The service's methods, each found on the servicer by name and wrapped.

    A servicer's method takes the request and returns the response message, or its bytes.
    """
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _handler(method, getattr(servicer, method.name), tokens),
            response_serializer=lambda r: r if isinstance(r, bytes) else r.SerializeToString(),
        )
        for method in descriptor.methods
    }
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def _handler(method: MethodDescriptor, serve: Serve, tokens: Tokens) -> Any:
    service = method.containing_service.name
    request_class = GetMessageClass(method.input_type)

    async def handle(content: bytes, context: Any) -> Message | bytes:
        started, run_id, error = time.perf_counter(), "", None
        try:
            if tokens.roles:
                tokens.authorise(service, method.name, context.invocation_metadata())
            request = _decode(request_class, content)
            run_id = _loggable(getattr(request, "run_id", ""))
            async with asyncio.timeout(REQUEST_LIMIT_S):
                response = await serve(request)
        except Exception as raised:  # the boundary: nothing but our own errors leaves it
            error = _foreseen(raised, method.name, run_id)
        code = _status(error)
        _observe(method.name, run_id, code, time.perf_counter() - started)
        if error is not None:
            metadata = ((ERROR_KEY, type(error).__name__),)
            await context.abort(code, _details(error), trailing_metadata=metadata)
        return response

    return handle


def _loggable(run_id: str) -> str:
    """The run id if it is one: nothing else that a caller says comes into the log."""
    return run_id if RUN_ID.fullmatch(run_id) else ""


def _decode(request_class: type[Message], content: bytes) -> Message:
    try:
        return request_class.FromString(content)
    except DecodeError as error:
        name = request_class.DESCRIPTOR.name
        raise InvalidRequestError(f"request: must be an encoded {name}") from error


def _foreseen(raised: Exception, method: str, run_id: str) -> CurriculumError:
    if isinstance(raised, CurriculumError):
        return raised
    if isinstance(raised, TimeoutError):
        return DeadlineError(f"the call took longer than {REQUEST_LIMIT_S:g} s; repeat it")
    logger.error("rpc failed method=%s run=%s", method, run_id, exc_info=raised)
    return CurriculumError("internal error")


def _status(error: CurriculumError | None) -> grpc.StatusCode:
    if error is None:
        return grpc.StatusCode.OK
    name = next((STATUS_NAMES[c] for c in type(error).__mro__ if c in STATUS_NAMES), "INTERNAL")
    return grpc.StatusCode[name]


def _details(error: CurriculumError) -> str:
    text = str(error)
    return text if len(text) <= MAX_DETAILS else f"{text[: MAX_DETAILS - 1]}…"


def _observe(method: str, run_id: str, code: grpc.StatusCode, elapsed_s: float) -> None:
    metrics.RPCS.labels(method, code.name).inc()
    metrics.RPC_SECONDS.labels(method).observe(elapsed_s)
    access_log.info(
        "rpc served method=%s run=%s code=%s ms=%.1f", method, run_id, code.name, elapsed_s * 1e3
    )
