"""The run's document: everything about a run that is not a column.

It is one JSON value in the run's meta hash, replaced as a whole by `commit`, under the run's
`layout` number: whoever acts on an old layout is told to read again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from curriculum_api.errors import StateError
from curriculum_api.limits import MAX_CHECKPOINTS

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Window:
    """A closed range of policy steps whose counts are kept together."""

    window: int
    first_step: int
    last_step: int


@dataclass(frozen=True)
class CheckpointMark:
    """A point to roll back to: the newest window that belongs to it."""

    name: str
    policy_step: int
    window: int


@dataclass(frozen=True)
class Document:
    """A run but for its columns."""

    config: dict[str, Any]
    create_ms: int = -1
    """By the store's clock, set by the script that creates the run."""
    timeline: int = 0
    prompt_count: int = 0
    chunk_count: int = 0
    windows: tuple[Window, ...] = (Window(0, 0, 0),)
    next_window: int = 1
    checkpoints: tuple[CheckpointMark, ...] = ()
    policy_step: int | None = None
    policy_uri: str = ""
    schema: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Document:
        values = json.loads(text)
        if values["schema"] != SCHEMA_VERSION:
            raise StateError(
                f"schema={values['schema']}: must be {SCHEMA_VERSION}; the store was written by "
                "another version of this server"
            )
        values["windows"] = tuple(Window(**w) for w in values["windows"])
        values["checkpoints"] = tuple(CheckpointMark(**c) for c in values["checkpoints"])
        return cls(**values)

    @property
    def sealed_window(self) -> int:
        """The newest window that a checkpoint closed; it and all before it change no more."""
        return self.checkpoints[-1].window if self.checkpoints else -1

    def window_for(self, step: int) -> Window | None:
        """The window in which counts made at `step` are kept now; None when one must be opened.

        Counts for a step before a checkpoint that arrive after it belong to the window behind it,
        so that a rollback to the checkpoint drops them.
        """
        unsealed = [w for w in self.windows if w.window > self.sealed_window]
        if not unsealed or step > unsealed[-1].last_step:
            return None
        return next(w for w in unsealed if step <= w.last_step)

    def with_window_for(self, step: int, window_steps: int) -> Document:
        """The document with one more window, on the grid behind the last one, that takes `step`."""
        start = self.windows[-1].last_step + 1
        first = start + max(0, step - start) // window_steps * window_steps
        window = Window(self.next_window, first, first + window_steps - 1)
        return replace(self, windows=(*self.windows, window), next_window=self.next_window + 1)

    def with_checkpoint(self, name: str, step: int) -> Document:
        """The document with its last window closed at `step` and the checkpoint marked; the oldest
        is let go when there are too many."""
        *before, last = self.windows
        closed = replace(last, last_step=max(last.first_step, min(last.last_step, step)))
        mark = CheckpointMark(name, step, last.window)
        kept = (*self.checkpoints, mark)[-MAX_CHECKPOINTS:]
        return replace(self, windows=(*before, closed), checkpoints=kept)

    def rolled_back_to(self, mark: CheckpointMark) -> Document:
        """The document as it was at `mark`, one timeline later, without a later step's policy."""
        position = self.checkpoints.index(mark)
        is_kept = self.policy_step is not None and self.policy_step <= mark.policy_step
        return replace(
            self,
            policy_step=self.policy_step if is_kept else None,
            policy_uri=self.policy_uri if is_kept else "",
            timeline=self.timeline + 1,
            windows=tuple(w for w in self.windows if w.window <= mark.window),
            checkpoints=self.checkpoints[: position + 1],
        )
