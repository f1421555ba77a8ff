"""Whether a run's document can be one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from curriculum_api.errors import CurriculumError
from curriculum_api.limits import MAX_CHECKPOINT_NAME_BYTES, MAX_POLICY_STEP, MAX_URI_BYTES
from curriculum_server import convert
from curriculum_server.engine.config import ChannelConfig, RunConfig
from curriculum_server.engine.growing import MAX_POOL_PROMPTS
from curriculum_server.store.document import CheckpointMark, Document
from curriculum_server.store.parts import DAMAGE
from curriculum_server.store.windows import Window

LARGEST = {
    "create_ms": 10**14,
    "timeline": 2**31,
    "prompt_count": MAX_POOL_PROMPTS,
    "chunk_count": MAX_POOL_PROMPTS,
    "embedding_chunk_count": MAX_POOL_PROMPTS,
    "used_embedding_chunk_count": MAX_POOL_PROMPTS,
    "next_window": 10**9,
}
"""So that messages carry them and the names of keys hold them, with room for what is to come."""
AT_MOST = (
    ("chunk_count", "prompt_count"),
    ("embedding_chunk_count", "prompt_count"),
    ("used_embedding_chunk_count", "embedding_chunk_count"),
)
MAX_CHECKPOINTS_EVER = 256
"""As many as servers kept before they kept 64."""
REFERENCE = Window(0, 0, 0)
"""The first window of every run: it is made so, and a checkpoint in it closes it at step 0."""
SHOWN_CHARS = 200


def document_problems(document: Document) -> list[str]:
    """What speaks against it, in words that a message can carry; the document may come from
    anywhere."""
    try:
        problems = [
            *_config_problems(document),
            *_window_problems(document),
            *_mark_problems(document),
        ]
        # What is taken here must be shown for ever after.
        problems = problems or list(_message_problems(document))
    except DAMAGE as error:
        problems = [f"has a field of a wrong type: {error!r}"]
    return [_printable(problem) for problem in problems]


def _message_problems(document: Document) -> Iterator[str]:
    try:
        convert.document_message("", document, 0).SerializeToString()
    except (ValueError, TypeError, OverflowError) as error:
        yield f"holds what no message can carry: {error}"


def _printable(problem: str) -> str:
    """Without the lone surrogates that JSON may hold, and without the middle of a long value."""
    text = problem.encode(errors="backslashreplace").decode()
    half = SHOWN_CHARS // 2
    return text if len(text) <= SHOWN_CHARS else f"{text[:half]}…{text[-half:]}"


def _config_problems(document: Document) -> Iterator[str]:
    try:
        RunConfig.from_mapping(document.config)
    except CurriculumError as error:
        yield str(error)
    if not isinstance(document.config["channels"], list):
        yield "config.channels: must be a list"
    yield from _type_problems("config", RunConfig().to_mapping(), document.config)
    for channel in document.config["channels"]:
        usual = vars(ChannelConfig("usual", 0.0, 1.0))
        yield from _type_problems("config.channels", usual, channel)
    for name, most in LARGEST.items():
        value, least = getattr(document, name), -1 if name == "create_ms" else 0
        if type(value) is not int or not least <= value <= most:
            yield f"{name}={value!r}: must be a whole number in [{least}, {most}]"
    for name, bound in AT_MOST:
        value, most = getattr(document, name), getattr(document, bound)
        if value > most:
            yield f"{name}={value}: must be at most {bound}={most}"


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
        elif not window.window < document.next_window:
            yield f"{window}: must be below next_window={document.next_window}"
    if document.windows and document.windows[0] != REFERENCE:
        yield f"{document.windows[0]}: must be {REFERENCE}, as every run's first"
    for before, after in pairwise(document.windows):
        if before.window >= after.window or before.last_step >= after.first_step:
            yield f"{after}: must come behind {before}"
        elif not 1 <= after.span <= after.window - before.window:
            yield f"{after}: must be of 1 to {after.window - before.window} windows"
    sealed = document.sealed_window
    if type(sealed) is not int or not -1 <= sealed < document.next_window:
        yield f"sealed_window={sealed!r}: must be in [-1, {document.next_window})"


def _mark_problems(document: Document) -> Iterator[str]:
    windows = {window.window for window in document.windows}
    names = [mark.name for mark in document.checkpoints]
    for mark in (*document.checkpoints, *([document.resumed] if document.resumed else [])):
        yield from _mark_problem(mark)
    for mark in document.checkpoints:
        if mark.window not in windows:
            yield f"{mark}: its window is not there"
    if len(set(names)) < len(names):
        yield "has two checkpoints of one name"
    if len(names) > MAX_CHECKPOINTS_EVER:
        yield f"has {len(names)} checkpoints: must be at most {MAX_CHECKPOINTS_EVER}"
    if document.policy_step is not None and not _is_step(document.policy_step):
        yield f"has a policy_step outside [0, {MAX_POLICY_STEP}]"
    if not _is_text(document.policy_uri, 0, MAX_URI_BYTES):
        yield f"has a policy_uri that is none: must be text of at most {MAX_URI_BYTES} bytes"


def _mark_problem(mark: CheckpointMark) -> Iterator[str]:
    if not _is_text(mark.name, 1, MAX_CHECKPOINT_NAME_BYTES):
        allowed = f"1 to {MAX_CHECKPOINT_NAME_BYTES} bytes"
        yield f"has a checkpoint whose name is none: must be text of {allowed}"
    if not _is_step(mark.policy_step):
        yield f"has a checkpoint with a policy_step outside [0, {MAX_POLICY_STEP}]"
    if not all(type(number) is int for number in (mark.window, mark.open_batches)):
        yield f"{mark}: must have whole numbers"


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_POLICY_STEP


def _is_text(value: object, least_bytes: int, most_bytes: int) -> bool:
    return (
        isinstance(value, str) and least_bytes <= len(value.encode(errors="replace")) <= most_bytes
    )
