"""Engines sample completions.

Each lives in a module of its own, which has `create(config, patience)` and is imported when the
engine is asked for: what it needs may not be installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from curriculum_api.errors import InvalidRequestError
from curriculum_probe.patience import Patience

ENGINES = {
    "openai": "curriculum_probe.engines.openai",
    "transformers": "curriculum_probe.engines.transformers",
    "vllm": "curriculum_probe.engines.vllm",
}
EMBEDDERS = ("transformers",)
"""Those of them that are an `Embedder`; known before one has loaded its weights."""
_EXTRAS = {"torch": "transformers", "transformers": "transformers", "vllm": "vllm"}
"""What engines import and which extra installs it."""


class EngineError(Exception):
    """The engine cannot sample, and asking again would not help."""


class RefusedError(Exception):
    """This one prompt cannot be sampled; others may."""


class CheckpointError(Exception):
    """These weights cannot be loaded; the old ones go on."""


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
    """Attempts that are sampled at a time."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    chat: bool = False
    """Whether the prompt is a user's message, for the model's chat template, or the bare text."""
    endpoint: str = ""
    api_key: str = field(default="", repr=False)
    options: Mapping[str, object] = field(default_factory=dict)
    """What the engine takes besides, by the names that it gives."""


class Engine(Protocol):
    """Samples from one model."""

    @property
    def slots(self) -> int:
        """Attempts that it takes at once; more only wait."""

    @property
    def loads_weights(self) -> bool:
        """Whether `load` can work; otherwise someone else changes the weights."""

    async def sample(self, prompt: str, attempt_count: int) -> list[Completion]:
        """As many completions. Any number of calls may run at once.

        Raises:
            RefusedError: this prompt cannot be sampled.
            EngineError: nothing can be sampled.
        """

    async def load(self, uri: str) -> None:
        """Go on with these weights. Nothing may be being sampled.

        Raises:
            CheckpointError: they are missing, half-written or of another shape; the old ones go on.
            EngineError: neither the new nor the old ones are there any more.
        """

    async def close(self) -> None:
        """Stop, and free what it holds."""


@runtime_checkable
class Embedder(Protocol):
    """An engine that also tells where prompts lie in its model's space."""

    async def embed(self, prompts: Sequence[str]) -> list[list[float] | RefusedError]:
        """For each prompt its embedding, all of one length, or why it has none.

        Raises:
            EngineError: nothing can be embedded.
        """


def create_engine(name: str, config: EngineConfig, patience: Patience) -> Engine:
    """The engine of that name. It may take minutes to load its weights."""
    if name not in ENGINES:
        raise InvalidRequestError(f"engine={name!r}: must be one of {', '.join(ENGINES)}")
    try:
        engine: Engine = importlib.import_module(ENGINES[name]).create(config, patience)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        command = f"pip install 'edge-curriculum[probe,{_EXTRAS[missing]}]'"
        raise EngineError(f"engine={name!r} needs {missing}: {command}") from error
    return engine
