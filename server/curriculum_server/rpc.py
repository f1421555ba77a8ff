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
    OverloadedError,
)
from curriculum_api.status import PUSHBACK_KEY
from curriculum_server import metrics
from curriculum_server.admission import Admission, Call, extend
from curriculum_server.security import Tokens
from curriculum_server.validate import RUN_ID

REQUEST_LIMIT_S = 60.0
"""No call is meant to take longer; whoever waits for one that does can repeat it."""
READ_LIMIT_S = 20.0
"""For a request to arrive, from its first byte: 64 MiB at 30 Mbit/s."""
GONE_AFTER_S = 0.1
"""By when it is known whether a request that ended early was given up by its caller."""
ERROR_KEY = "curriculum-error"
"""Trailing metadata: the name of the error's class."""
MAX_DETAILS = 500
"""Characters of a status; gRPC's limit for all metadata is 8 KiB, percent-encoded."""

Serve = Callable[[Any], Awaitable[Message | bytes]]

access_log = logging.getLogger("curriculum_server.access")
logger = logging.getLogger(__name__)


def generic_handler(
    descriptor: ServiceDescriptor, servicer: object, tokens: Tokens, admission: Admission
) -> grpc.GenericRpcHandler:
    """The service's methods, each found on the servicer by name and wrapped.

    A servicer's method takes the request and returns the response message, or its bytes.
    """
    # To gRPC each is a stream of requests: of a unary method it would read every request itself,
    # however many there are, and wait for them without end.
    handlers = {
        method.name: grpc.stream_unary_rpc_method_handler(
            _handler(method, getattr(servicer, method.name), tokens, admission)
        )
        for method in descriptor.methods
    }
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def _handler(method: MethodDescriptor, serve: Serve, tokens: Tokens, admission: Admission) -> Any:
    service = method.containing_service.name
    request_class = GetMessageClass(method.input_type)

    async def handle(_requests: object, context: Any) -> bytes:
        started, rpc = time.perf_counter(), _Rpc(admission, context)
        response, error = b"", None
        try:
            if tokens.roles:
                tokens.authorise(service, method.name, context.invocation_metadata())
            response = await rpc.serve(request_class, serve)
        except Exception as raised:  # the boundary: nothing but our own errors leaves it
            # Its traceback leads here: a circle that would keep gRPC's call until a collection.
            error = rpc.foreseen(raised, method.name).with_traceback(None)
        code = _status(error)
        _observe(method.name, rpc.run_id, code, time.perf_counter() - started)
        if error is not None:  # `abort` would raise: another circle
            context.set_code(code)
            context.set_details(_details(error))
            context.set_trailing_metadata(_metadata(error, admission))
        return response

    return handle


class _Rpc:
    """One call: how far it has come, and what ends it."""

    def __init__(self, admission: Admission, context: Any) -> None:
        self._admission = admission
        self._context = context
        self._call: Call | None = None
        self._is_read = False
        self.run_id = ""

    async def serve(self, request_class: type[Message], serve: Serve) -> bytes:
        """Read, wait, serve and encode."""
        admission = self._admission
        async with asyncio.timeout(READ_LIMIT_S) as limit:
            call = self._call = admission.arrive(self._context.peer(), limit)
            try:
                if admission.bounds.reads_late:
                    await admission.start(call)
                    extend(limit, READ_LIMIT_S)
                request = await self._read(call, request_class)
                if not call.is_running:
                    await admission.start(call, self.run_id)
                extend(limit, REQUEST_LIMIT_S)
                response = await serve(request)
            finally:
                admission.end(call)
        answer = response if isinstance(response, bytes) else response.SerializeToString()
        admission.hold_answer(call, len(answer))
        return answer

    def foreseen(self, raised: Exception, method: str) -> CurriculumError:
        """The error that the caller is told."""
        if isinstance(raised, CurriculumError):
            return raised
        if isinstance(raised, TimeoutError):
            if self._call is not None and self._call.refused:
                return OverloadedError(self._call.refused)
            what, limit_s = ("call took", REQUEST_LIMIT_S)
            if not self._is_read:
                what, limit_s = ("request took", READ_LIMIT_S)
            return DeadlineError(f"the {what} longer than {limit_s:g} s; repeat it")
        logger.error("rpc failed method=%s run=%s", method, self.run_id, exc_info=raised)
        return CurriculumError("internal error")

    async def _read(self, call: Call, request_class: type[Message]) -> Message:
        admission = self._admission
        content = await self._context.read()
        if not isinstance(content, bytes):  # the end of the stream
            # That the caller has gone looks the same, and is told by a cancellation a moment later.
            await asyncio.sleep(GONE_AFTER_S)
            raise InvalidRequestError("request: must be sent")
        self._is_read = True
        task = asyncio.current_task()
        assert task is not None
        # The task ends when the answer is sent. The context's own callbacks are a circle.
        task.add_done_callback(lambda _task: admission.release(call))
        admission.hold_request(call, len(content))
        request = _decode(request_class, content)
        self.run_id = _loggable(getattr(request, "run_id", ""))
        return request


def _loggable(run_id: str) -> str:
    """The run id if it is one: nothing else that a caller says comes into the log."""
    return run_id if RUN_ID.fullmatch(run_id) else ""


def _decode(request_class: type[Message], content: bytes) -> Message:
    try:
        return request_class.FromString(content)
    except DecodeError as error:
        name = request_class.DESCRIPTOR.name
        raise InvalidRequestError(f"request: must be an encoded {name}") from error


def _status(error: CurriculumError | None) -> grpc.StatusCode:
    if error is None:
        return grpc.StatusCode.OK
    name = next((STATUS_NAMES[c] for c in type(error).__mro__ if c in STATUS_NAMES), "INTERNAL")
    return grpc.StatusCode[name]


def _details(error: CurriculumError) -> str:
    text = str(error)
    return text if len(text) <= MAX_DETAILS else f"{text[: MAX_DETAILS - 1]}…"


def _metadata(error: CurriculumError, admission: Admission) -> tuple[tuple[str, str], ...]:
    named = ((ERROR_KEY, type(error).__name__),)
    if not isinstance(error, OverloadedError):
        return named
    return (*named, (PUSHBACK_KEY, f"{admission.retry_after_s * 1e3:.0f}"))


def _observe(method: str, run_id: str, code: grpc.StatusCode, elapsed_s: float) -> None:
    metrics.RPCS.labels(method, code.name).inc()
    metrics.RPC_SECONDS.labels(method).observe(elapsed_s)
    access_log.info(
        "rpc served method=%s run=%s code=%s ms=%.1f", method, run_id, code.name, elapsed_s * 1e3
    )
