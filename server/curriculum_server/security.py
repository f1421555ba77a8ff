"""Who may call what: TLS, bearer tokens and roles."""

from __future__ import annotations

import hmac
import ipaddress
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from curriculum_api.errors import (
    InvalidRequestError,
    PermissionDeniedError,
    StateError,
    UnauthenticatedError,
)

ROLES: Mapping[str, tuple[str, ...]] = {
    "trainer": ("TrainerService",),
    "prober": ("ProbeService", "TrainerService/ReleaseBatch", "OperatorService/GetRun"),
    "operator": ("TrainerService", "ProbeService", "OperatorService"),
}
"""Services, or single methods of them, that each role may call."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a server and their roles. A server without any lets everybody call everything,
    and does not ask."""

    roles: Mapping[str, str]

    def authorise(
        self, service: str, method: str, metadata: Iterable[tuple[str, str | bytes]]
    ) -> None:
        """Refuse a caller whose token is unknown or of a role that may not call the method.

        Raises:
            UnauthenticatedError: no token, or an unknown one.
            PermissionDeniedError: the role does not reach that far.
        """
        header = next((str(value) for key, value in metadata if key == "authorization"), "")
        scheme, _, given = header.partition(" ")
        role = self._role(given) if scheme.lower() == "bearer" else None
        if role is None:
            raise UnauthenticatedError("authorization: must be 'Bearer TOKEN' with a known token")
        if service not in ROLES[role] and f"{service}/{method}" not in ROLES[role]:
            raise PermissionDeniedError(f"role {role!r} may not call {service}/{method}")

    def _role(self, given: str) -> str | None:
        found = None
        for token, role in self.roles.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(token.encode(), given.encode()):
                found = role
        return found


def read_tokens(path: str) -> Tokens:
    """From a TOML file with one line `"token" = "role"` for each token.

    Raises:
        InvalidRequestError: the file cannot be read, or names an unknown role.
    """
    if not path:
        return Tokens({})
    try:
        roles = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequestError(f"tokens={path}: cannot be read: {error}") from error
    for role in roles.values():
        if role not in ROLES:
            raise InvalidRequestError(f"tokens={path}: {role!r}: must be one of {', '.join(ROLES)}")
    if not roles:
        raise InvalidRequestError(f"tokens={path}: holds no token")
    return Tokens(roles)


def read_credentials(cert: str, key: str, client_ca: str) -> grpc.ServerCredentials | None:
    """TLS from PEM files; with a client CA, callers must show a certificate of it.

    Raises:
        InvalidRequestError: a file cannot be read, or one of a pair is missing.
    """
    if bool(cert) != bool(key) or (client_ca and not cert):
        raise InvalidRequestError(
            "tls_server_cert and tls_server_key: give both or neither; tls_client_ca needs them"
        )
    if not cert:
        return None
    try:
        pair = (Path(key).read_bytes(), Path(cert).read_bytes())
        roots = Path(client_ca).read_bytes() if client_ca else None
    except OSError as error:
        raise InvalidRequestError(f"tls: {error.filename}: {error.strerror}") from error
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=bool(roots))


def check_exposure(listen: str, host: str, *, encrypted: bool, tokens: Tokens) -> None:
    """Refuse to serve strangers: beyond loopback, TLS and tokens (or mTLS) are needed.

    Raises:
        StateError: neither was given.
    """
    if host == "localhost" or _is_loopback(host) or (encrypted and tokens.roles):
        return
    raise StateError(
        f"listen={listen}: is open to others; give --tls-server-cert, --tls-server-key and "
        "--tokens, or say --allow-insecure if the network is yours alone"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
