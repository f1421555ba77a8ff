"""How every client connects: the channel's options, TLS and the caller's token."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import MAX_MESSAGE_BYTES

CHANNEL_OPTIONS = (
    # gRPC's own receive limit of 4 MiB is below what the contract allows.
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
            raise InvalidRequestError(
                "tls: a certificate and its key go together; give both or neither"
            )

    @classmethod
    def from_files(
        cls, *, ca: Path | None, cert: Path | None, key: Path | None
    ) -> TlsConfig | None:
        """What the files of a command's --tls options hold; None for plain text, without any."""
        if ca is cert is key is None:
            return None
        return cls(_read("tls_ca", ca), _read("tls_cert", cert), _read("tls_key", key))


def open_channel(target: str, tls: TlsConfig | None = None, transport: Any = grpc) -> Any:
    """A channel of `grpc` or of `grpc.aio`, in plain text without `tls`."""
    if tls is None:
        return transport.insecure_channel(target, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        tls.root_certificates, tls.private_key, tls.certificate_chain
    )
    return transport.secure_channel(target, credentials, options=CHANNEL_OPTIONS)


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of a call by the holder of a token; empty without one."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def _read(name: str, path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise InvalidRequestError(f"{name}={path}: {error.strerror}") from error
