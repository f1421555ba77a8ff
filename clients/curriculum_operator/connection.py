"""The channel to the server, one call at a time, with the contract's errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from curriculum_api import errors
from curriculum_api.channel import TlsConfig, bearer, open_channel
from curriculum_api.status import AWAY, delays, error_from_rpc, pause_s
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub

_Response = TypeVar("_Response")

CALL_TIMEOUT_S = 60.0
"""Long enough for a full AddPrompts on a busy store, short enough that a dead server shows."""


class Connection:
    """Calls OperatorService at one address."""

    def __init__(self, address: str, *, token: str | None = None, tls: TlsConfig | None = None):
        self.address = address
        self._metadata = bearer(token)
        self._channel = open_channel(address, tls)
        self.stub = OperatorServiceStub(self._channel)

    def call(self, rpc: Callable[..., _Response], request: Message) -> _Response:
        """One call; raises the contract's errors, and says which address did not answer."""
        try:
            return rpc(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as rpc_error:
            error = error_from_rpc(rpc_error)
        if isinstance(error, errors.StoreUnavailableError):
            raise errors.StoreUnavailableError(
                f"{self.address} is unavailable: {error}\n"
                "Start a server there with `curriculum-server`, or name another one with --server "
                "or CURRICULUM_SERVER."
            )
        raise error

    def call_patiently(
        self,
        rpc: Callable[..., _Response],
        request: Message,
        *,
        patience_s: float,
        on_retry: Callable[[errors.CurriculumError], None] = lambda _error: None,
    ) -> _Response:
        """Repeats an idempotent call while the server is away, for at most `patience_s`."""
        give_up_at = time.monotonic() + patience_s
        pauses = delays()
        while True:
            try:
                return self.call(rpc, request)
            except AWAY as error:
                delay_s = pause_s(error, next(pauses))
                if time.monotonic() + delay_s > give_up_at:
                    raise
                on_retry(error)
            time.sleep(delay_s)

    def close(self) -> None:
        self._channel.close()
