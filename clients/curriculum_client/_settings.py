"""What a client is constructed with, and the channel that follows from it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc

from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import MAX_MESSAGE_BYTES, MAX_REQUEST_ID_BYTES

OnUnavailable = Literal["raise", "uniform"]

# Leaves room in a request_id for "-" and a sequence number.
MAX_CONSUMER_BYTES = MAX_REQUEST_ID_BYTES - 24

_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Also bounds how long unacknowledged data may linger on a dead connection.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # The default grows to two minutes, far longer than a service takes to restart.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Subchannels shared in the process would hand a forked child its parent's connection.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class TlsConfig:
    """PEM bytes for TLS. Without `root_certificates` the system's are used; mTLS needs the rest."""

    root_certificates: bytes | None = None
    certificate_chain: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate_chain is None) != (self.private_key is None):
            raise InvalidRequestError("tls: certificate_chain and private_key go together")


@dataclass(frozen=True)
class Settings:
    """A client's constructor arguments, checked."""

    target: str
    run_id: str
    consumer: str
    reporter: str | None
    timeout_s: float
    retry_s: float
    token: str | None = field(repr=False)
    tls: TlsConfig | None
    on_unavailable: OnUnavailable
    max_buffered_reports: int

    def __post_init__(self) -> None:
        for name in ("target", "run_id"):
            if not getattr(self, name):
                raise InvalidRequestError(f"{name}='': must not be empty")
        if not 1 <= len(self.consumer.encode()) <= MAX_CONSUMER_BYTES:
            raise InvalidRequestError(
                f"consumer={self.consumer!r}: must be 1 to {MAX_CONSUMER_BYTES} bytes"
            )
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise InvalidRequestError(f"timeout_s={self.timeout_s}: must be finite and above 0")
        if not (math.isfinite(self.retry_s) and self.retry_s >= 0):
            raise InvalidRequestError(f"retry_s={self.retry_s}: must be finite and at least 0")
        if self.on_unavailable not in ("raise", "uniform"):
            raise InvalidRequestError(
                f"on_unavailable={self.on_unavailable!r}: must be 'raise' or 'uniform'"
            )
        if self.max_buffered_reports < 0:
            raise InvalidRequestError(
                f"max_buffered_reports={self.max_buffered_reports}: must be at least 0"
            )

    def default_reporter(self) -> str:
        """Ranks of one launcher report apart: torchrun, accelerate and DeepSpeed set RANK."""
        return f"{self.consumer}/{os.environ.get('RANK', '0')}"

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What travels with every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def open_channel(self, transport: Any) -> Any:
        """A channel of `grpc` or of `grpc.aio`."""
        if self.tls is None:
            return transport.insecure_channel(self.target, options=_CHANNEL_OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            self.tls.root_certificates, self.tls.private_key, self.tls.certificate_chain
        )
        return transport.secure_channel(self.target, credentials, options=_CHANNEL_OPTIONS)
