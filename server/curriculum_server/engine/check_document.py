"""Whether a run's document can be one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from curriculum_api.errors import CurriculumError
from curriculum_api.limits import MAX_POLICY_STEP
from curriculum_server.engine.config import RunConfig
from curriculum_server.store.document import Document
from curriculum_server.store.parts import DAMAGE


def document_problems(document: Document) -> list[str]:
    """What speaks against it, in words; the document may come from anywhere."""
    try:
        return [*_config_problems(document), *_window_problems(document), *_mark_problems(document)]
    except DAMAGE as error:
        return [f"has a field of a wrong type: {error!r}"]


def _config_problems(document: Document) -> Iterator[str]:
    try:
        RunConfig.from_mapping(document.config)
    except CurriculumError as error:
        yield str(error)
    if not isinstance(document.config["channels"], list):
        yield "config.channels: must be a list"
    yield from _type_problems("config", RunConfig().to_mapping(), document.config)
    for name in ("create_ms", "timeline", "prompt_count", "chunk_count", "next_window"):
        value = getattr(document, name)
        if type(value) is not int or (value < 0 and name != "create_ms"):
            yield f"{name}={value!r}: must be a whole number from 0 on"
    if document.chunk_count > document.prompt_count:
        yield f"chunk_count={document.chunk_count}: must be at most {document.prompt_count}"


def _type_problems(name: str, usual: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Values that a request could not have brought, by the types of the defaults."""
    for key, value in values.items():
        kind = type(usual[key]) if key in usual else type(value)
        if kind is dict and isinstance(value, dict):
            yield from _type_problems(f"{name}.{key}", usual[key], value)
        elif kind in (int, float, str) and type(value) not in {kind, {float: int}.get(kind, kind)}:
            yield f"{name}.{key}={value!r}: must be of type {kind.__name__}"


def _window_problems(document: Document) -> Iterator[str]:
    if not document.windows:
        yield "has no window"
    for window in document.windows:
        numbers = (window.window, window.first_step, window.last_step, window.span)
        if any(type(number) is not int for number in numbers):
            yield f"{window}: must be whole numbers"
        elif not 0 <= window.first_step <= window.last_step < 2 * MAX_POLICY_STEP:
            yield f"{window}: must have its steps in order"
        elif window.window >= document.next_window or window.span < 1:
            yield f"{window}: must be below next_window={document.next_window}"
    for before, after in pairwise(document.windows):
        if before.window >= after.window or before.last_step >= after.first_step:
            yield f"{after}: must come behind {before}"


def _mark_problems(document: Document) -> Iterator[str]:
    windows = {window.window for window in document.windows}
    marks = [*document.checkpoints, *([document.resumed] if document.resumed else [])]
    names = [mark.name for mark in document.checkpoints]
    steps = [mark.policy_step for mark in marks]
    if document.policy_step is not None:
        steps.append(document.policy_step)
    if not all(type(step) is int and 0 <= step <= MAX_POLICY_STEP for step in steps):
        yield f"has a policy_step outside [0, {MAX_POLICY_STEP}]"
    if not all(type(text) is str for text in (document.policy_uri, *(m.name for m in marks))):
        yield "has a name or URI that is no text"
    numbers = (document.sealed_window, *(mark.open_batches for mark in marks))
    if not all(type(number) is int for number in numbers):
        yield "has a number that is none"
    for mark in document.checkpoints:
        if mark.window not in windows:
            yield f"{mark}: its window is not there"
        if names.count(mark.name) > 1:
            yield f"{mark}: its name occurs twice"
