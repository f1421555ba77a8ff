"""Verifiers score completions by what a prompt's payload says.

Each lives in a module of its own, which has `prepare(payload)` and is imported when a payload asks
for it: what it needs may not be installed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

Payload = Mapping[str, Any]

VERIFIERS = {
    "exact": "curriculum_probe.verifiers.exact",
    "numeric": "curriculum_probe.verifiers.numeric",
    "reasoning_gym": "curriculum_probe.verifiers.reasoning_gym",
}


class UnverifiableError(Exception):
    """Nothing can be said of this prompt's completions."""


class Scorer(Protocol):
    """Scores completions of one prompt."""

    def __call__(self, completion: str, /) -> float:
        """1 for a right one, 0 for a wrong one; anything raised says neither."""


class Verifier(Protocol):
    """A module of this package."""

    def prepare(self, payload: Payload) -> Scorer:
        """The prompt's scorer.

        Raises:
            UnverifiableError: the payload lacks what the verifier needs.
        """


def scorer_for(payload_json: str) -> Scorer:
    """The scorer that a payload asks for.

    Raises:
        UnverifiableError: it asks for none, or not properly.
    """
    payload = json.loads(payload_json or "{}")
    name = payload.get("verifier", "exact" if "answer" in payload else None)
    if name is None:
        raise UnverifiableError("the payload has neither a verifier nor an answer")
    if not isinstance(name, str) or name not in VERIFIERS:
        raise UnverifiableError(f"verifier={name!r}: must be one of {', '.join(VERIFIERS)}")
    verifier: Verifier = importlib.import_module(VERIFIERS[name])
    return verifier.prepare(payload)
