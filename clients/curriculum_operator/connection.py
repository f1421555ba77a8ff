"""The channel to the server, one call at a time, with the contract's errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from curriculum_api import errors
from curriculum_api.status import CHANNEL_OPTIONS, error_from_rpc
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub

_Response = TypeVar("_Response")

CALL_TIMEOUT_S = 60.0
"""Long enough for a full AddPrompts on a busy store, short enough that a dead server shows."""

RETRIED = (errors.StoreUnavailableError, errors.DeadlineError)
FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 5.0


@dataclass(frozen=True)
class TlsFiles:
    """Where the certificates lie; without a CA the channel is not encrypted."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise errors.InvalidRequestError("tls_cert and tls_key: give both or neither")
        if self.cert is not None and self.ca is None:
            raise errors.InvalidRequestError("tls_cert: needs tls_ca as well")

    def credentials(self) -> grpc.ChannelCredentials | None:
        if self.ca is None:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes(),
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.cert.read_bytes() if self.cert else None,
        )


class Connection:
    """Calls OperatorService at one address."""

    def __init__(self, address: str, *, token: str | None = None, tls: TlsFiles | None = None):
        self.address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        credentials = (tls or TlsFiles()).credentials()
        options = list(CHANNEL_OPTIONS)
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
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
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                return self.call(rpc, request)
            except RETRIED as error:
                if time.monotonic() + backoff_s > give_up_at:
                    raise
                on_retry(error)
            time.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    def close(self) -> None:
        self._channel.close()
