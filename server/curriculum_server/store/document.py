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
from curriculum_server.store.columns import column_names
from curriculum_server.store.windows import Window, mergeable, merged

SCHEMA_VERSION = 4
"""1 knew neither merged windows nor the batches that a checkpoint keeps; 2 had no objectives and a
`discount` in its configuration; 3 had no embeddings beside the chunks of prompts."""


@dataclass(frozen=True)
class CheckpointMark:
    """A point to roll back to: the newest window that belongs to it, and the key of the batches
    that were open then, 0 when there was none."""

    name: str
    policy_step: int
    window: int
    open_batches: int = 0


@dataclass(frozen=True)
class Document:
    """A run but for its columns."""

    config: dict[str, Any]
    create_ms: int = -1
    """By the store's clock, set by the script that creates the run."""
    timeline: int = 0
    prompt_count: int = 0
    chunk_count: int = 0
    embedding_chunk_count: int = 0
    used_embedding_chunk_count: int = 0
    """The first so many of them describe prompts; the others wait until they are enough."""
    windows: tuple[Window, ...] = (Window(0, 0, 0),)
    next_window: int = 1
    sealed_window: int = -1
    """The newest window that a checkpoint closed; it and all before it take no more counts."""
    checkpoints: tuple[CheckpointMark, ...] = ()
    resumed: CheckpointMark | None = None
    """The checkpoint that the timeline began from, kept or not."""
    policy_step: int | None = None
    policy_uri: str = ""
    schema: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Document:
        values = json.loads(text)
        if values["schema"] == 1:
            values = _from_version_1(values)
        if values["schema"] == 2:
            values["schema"] = 3  # what is new in the configuration has defaults there
        if values["schema"] == 3:
            values["schema"] = 4  # what is new has defaults
        if values["schema"] != SCHEMA_VERSION:
            raise StateError(
                f"schema={values['schema']}: must be at most {SCHEMA_VERSION}; the store was "
                "written by a newer server"
            )
        values["windows"] = tuple(Window(**w) for w in values["windows"])
        values["checkpoints"] = tuple(CheckpointMark(**c) for c in values["checkpoints"])
        if values.get("resumed"):
            values["resumed"] = CheckpointMark(**values["resumed"])
        return cls(**values)

    @property
    def column_names(self) -> list[str]:
        """Every key that a window may have, the log of servings last."""
        channels = [channel["name"] for channel in self.config["channels"]]
        return column_names(channels, has_objective=bool(self.config.get("objective")))

    @property
    def kept_batches(self) -> set[int]:
        """The keys of open batches that a rollback, past or to come, refers to."""
        marks = (*self.checkpoints, self.resumed) if self.resumed else self.checkpoints
        return {mark.open_batches for mark in marks} - {0}

    def merges(self) -> list[tuple[Window, ...]]:
        """Runs of neighbouring windows that may be made one, as `windows.py` says."""
        return mergeable(self.windows, [mark.window for mark in self.checkpoints])

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

    def with_checkpoint(self, name: str, step: int, open_batches: int) -> Document:
        """The document with its last window closed at `step` and the checkpoint marked; the oldest
        is let go when there are too many."""
        *before, last = self.windows
        closed = replace(last, last_step=max(last.first_step, min(last.last_step, step)))
        mark = CheckpointMark(name, step, last.window, open_batches)
        return replace(
            self,
            windows=(*before, closed),
            sealed_window=last.window,
            checkpoints=(*self.checkpoints, mark)[-MAX_CHECKPOINTS:],
        )

    def without_checkpoint(self, name: str) -> Document:
        """The document with one checkpoint let go."""
        kept = tuple(mark for mark in self.checkpoints if mark.name != name)
        return replace(self, checkpoints=kept)

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
            sealed_window=mark.window,
            checkpoints=self.checkpoints[: position + 1],
            resumed=mark,
        )

    def with_merged(self, group: tuple[Window, ...]) -> Document:
        """The document with a run of windows made one."""
        at = self.windows.index(group[0])
        rest = self.windows[at + len(group) :]
        return replace(self, windows=(*self.windows[:at], merged(group), *rest))


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    checkpoints = values["checkpoints"]
    sealed = checkpoints[-1]["window"] if checkpoints else -1
    return {**values, "sealed_window": sealed, "schema": 2}
