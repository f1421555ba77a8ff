"""Which verifier a payload asks for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_probe.verifiers.base import Payload, UnverifiableError

GROUP = "curriculum_probe.verifiers"
"""The group of entry points by which other packages add verifiers."""
HTTP = "http"
BUILTINS = {
    name: f"curriculum_probe.verifiers.{name}"
    for name in ("exact", "numeric", "regex", "choice", "math", "reasoning_gym", HTTP)
}
Kind = Literal["verifier", "function", "http"]
_PYTHON = "python:"
_FUNCTION = re.compile(r"python:([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")


@dataclass(frozen=True)
class Task:
    """A payload with its verifier.

    Attributes:
        kind: `http` needs no process; `verifier` is an object that prepares itself for a payload,
            `function` scores at once.
        target: what to load, written as an entry point's value: `package.module:object`.
        payload_json: the payload, completed by the defaults.
    """

    kind: Kind
    target: str
    payload: Payload
    payload_json: str


class Registry:
    """The verifiers by name: the built-in ones and those of installed packages."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        """
        Raises:
            InvalidRequestError: the defaults are none of JSON's, or name no verifier.
            StateError: two verifiers have one name.
        """
        try:
            json.dumps(dict(defaults))
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"defaults: {error}") from error
        self._defaults = dict(defaults)
        self._added = _added_verifiers()
        if "verifier" in defaults:  # a slip would make every prompt useless
            try:
                self._target(defaults["verifier"])
            except UnverifiableError as error:
                raise InvalidRequestError(f"defaults: {error}") from error

    def task(self, payload_json: str) -> Task:
        """What a payload asks for.

        Imports neither user code nor a verifier's library, so these may still fail later.

        Raises:
            UnverifiableError: it asks for nothing, or not properly.
        """
        payload = {**self._defaults, **_parsed(payload_json)}
        name = payload.get("verifier", "exact" if "answer" in payload else None)
        if name is None:
            raise UnverifiableError("the payload has neither a verifier nor an answer")
        completed = json.dumps(payload)
        kind, target = self._target(name)
        if name in BUILTINS:
            module = importlib.import_module(target)
            getattr(module, "check", module.prepare)(payload)
        return Task(kind, target, payload, completed)

    def _target(self, name: object) -> tuple[Kind, str]:
        if isinstance(name, str):
            if name in BUILTINS:
                return "http" if name == HTTP else "verifier", BUILTINS[name]
            if name in self._added:
                return "verifier", self._added[name]
            if name.startswith(_PYTHON):
                return "function", _function(name)
        allowed = ", ".join([*BUILTINS, *self._added, "python:module:function"])
        raise UnverifiableError(f"verifier={name!r}: must be one of {allowed}")


def require(verifier: str, module: str) -> None:
    """See that a verifier's library is installed, without importing it.

    Raises:
        UnverifiableError: it is not.
    """
    if not _is_installed(module):
        raise UnverifiableError(
            f"verifier={verifier!r}: needs {module}: pip install 'edge-curriculum[probe]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # imported by other means, or masked
        return sys.modules.get(module) is not None


def _parsed(payload_json: str) -> dict[str, Any]:
    try:
        payload = json.loads(payload_json or "{}")
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise UnverifiableError("the payload is not a JSON object")
    return payload


def _function(name: str) -> str:
    """The function that a payload names, as an entry point's value.

    A function of the standard library is refused: none scores completions, and some, such as
    `builtins:exec`, would run them.
    """
    match = _FUNCTION.fullmatch(name)
    if match is None:
        raise UnverifiableError(f"verifier={name!r}: must be python:module:function")
    package = match[1].partition(".")[0]
    if package in sys.stdlib_module_names:
        raise UnverifiableError(f"verifier={name!r}: must not be in the standard library")
    if not _is_installed(package):
        raise UnverifiableError(
            f"verifier={name!r}: there is no module {package!r}: install it, or set PYTHONPATH"
        )
    return f"{match[1]}:{match[2]}"


def _added_verifiers() -> dict[str, str]:
    """What each name of the installed packages' entry points loads."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILTINS or entry.name.startswith(_PYTHON):
            raise StateError(f"{_named(entry)}: the name is a built-in verifier's")
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise StateError(f"{_named(entry)}: {_named(other)} has the same name")
    return {name: entry.value for name, entry in found.items()}


def _named(entry: EntryPoint) -> str:
    return f"verifier {entry.name!r} of {entry.dist.name if entry.dist else entry.value}"
