"""Engines sample completions.

Each lives in a module of its own, which has `create(config, patience)` and is imported when the
engine is asked for: what it needs may not be installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from curriculum_api.errors import InvalidRequestError
from curriculum_probe.patience import Patience

ENGINES = {"openai": "curriculum_probe.engines.openai"}


class EngineError(Exception):
    """The engine cannot sample, and asking again would not help."""


@dataclass(frozen=True)
class Completion:
    """One sampled text; `token_count` is None where the engine does not tell."""

    text: str
    token_count: int | None


@dataclass(frozen=True)
class EngineConfig:
    """What to sample from and how."""

    model: str
    max_tokens: int
    temperature: float
    concurrency: int
    endpoint: str = ""
    api_key: str = field(default="", repr=False)


class Engine(Protocol):
    """Samples from one model."""

    def generate(
        self, prompts: Sequence[str], attempt_counts: Sequence[int]
    ) -> list[list[Completion]]:
        """For each prompt its completions, `attempt_counts` of them; none where it is refused.

        Raises:
            EngineError: nothing can be sampled.
        """


def create_engine(name: str, config: EngineConfig, patience: Patience) -> Engine:
    """The engine of that name."""
    if name not in ENGINES:
        raise InvalidRequestError(f"engine={name!r}: must be one of {', '.join(ENGINES)}")
    engine: Engine = importlib.import_module(ENGINES[name]).create(config, patience)
    return engine
