"""What a client is constructed with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from curriculum_api.channel import TlsConfig
from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import DEFAULT_PORT, MAX_REQUEST_ID_BYTES

OnUnavailable = Literal["raise", "uniform"]

# Leaves room in a request_id for "-" and a sequence number.
MAX_CONSUMER_BYTES = MAX_REQUEST_ID_BYTES - 24


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


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The constructor arguments that variables name; an empty one names nothing.

    Raises:
        InvalidRequestError: A file of TLS cannot be read.
    """
    files = {
        name: Path(path) if (path := environment.get(f"CURRICULUM_TLS_{name.upper()}")) else None
        for name in ("ca", "cert", "key")
    }
    return {
        "target": environment.get("CURRICULUM_SERVER") or f"localhost:{DEFAULT_PORT}",
        "run_id": environment.get("CURRICULUM_RUN", ""),
        "consumer": environment.get("CURRICULUM_CONSUMER") or "default",
        "token": environment.get("CURRICULUM_TOKEN") or None,
        "tls": TlsConfig.from_files(**files),
    }
