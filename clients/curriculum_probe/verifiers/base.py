"""What every verifier is: it prepares itself for a payload, then scores completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Payload = Mapping[str, Any]


class UnverifiableError(Exception):
    """Nothing can be said of this prompt's completions."""


class Scorer(Protocol):
    """Scores completions of one prompt."""

    def __call__(self, completion: str, /) -> float:
        """1 for a right one, 0 for a wrong one; anything raised says neither."""


class Verifier(Protocol):
    """A module of this package, or what an entry point names: a module or an object."""

    def prepare(self, payload: Payload) -> Scorer:
        """The prompt's scorer.

        Raises:
            UnverifiableError: the payload lacks what the verifier needs.
        """
