"""Bounds of single fields. What depends on a run's state is checked by the engine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from curriculum_api import limits
from curriculum_api.errors import InvalidRequestError
from curriculum_api.v1 import batch_pb2, probe_service_pb2, prompt_pb2

RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
PIECE_PROMPTS, PIECE_BYTES = 128, 1 << 20
"""Prompts that are checked at one go: some 5 ms, or 20 ms where they hold much JSON."""


def run_id(value: str) -> str:
    if not RUN_ID.fullmatch(value):
        allowed = "1 to 64 characters of a-z, A-Z, 0-9, '.', '_' and '-'"
        raise InvalidRequestError(f"run_id={_shown(value)}: must be {allowed}")
    return value


def text(name: str, value: str, max_bytes: int, *, empty: bool = False) -> str:
    size = len(value.encode())
    if size > max_bytes or not (size or empty):
        least = 0 if empty else 1
        raise InvalidRequestError(
            f"{name}={_shown(value)}: must be {least} to {max_bytes} bytes, is {size}"
        )
    return value


def request_id(value: str) -> str:
    return text("request_id", value, limits.MAX_REQUEST_ID_BYTES)


def count(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidRequestError(f"{name}={value}: must be in [{low}, {high}]")
    return value


def rollout_budget(value: int, prompt_count: int) -> int:
    return count("rollout_budget", value, 2, prompt_count * limits.MAX_SLOT_ATTEMPTS)


def is_reference(request: probe_service_pb2.LeaseProbesRequest) -> bool:
    if request.is_reference and request.policy_step:
        raise InvalidRequestError(
            f"policy_step={request.policy_step}: must be 0 where is_reference is set"
        )
    return request.is_reference


def probe_budget(request: probe_service_pb2.LeaseProbesRequest) -> tuple[int | None, int | None]:
    """Attempts for each prompt, and for all; at most one of them is given."""
    attempts = rollouts = None
    if request.HasField("attempt_count"):
        attempts = count("attempt_count", request.attempt_count, 1, limits.MAX_GROUP_SIZE)
    if request.HasField("rollout_budget"):
        rollouts = count("rollout_budget", request.rollout_budget, 1, limits.MAX_PROBE_ROLLOUTS)
    if attempts and rollouts:
        raise InvalidRequestError(
            f"rollout_budget={rollouts}: must be absent where attempt_count={attempts} is given"
        )
    return attempts, rollouts


def page_size(value: int) -> int:
    return count("page_size", value, 0, limits.MAX_PAGE_SIZE) or limits.DEFAULT_PAGE_SIZE


def prompts(values: Sequence[prompt_pb2.Prompt]) -> Iterator[list[prompt_pb2.Prompt]]:
    """The prompts in pieces, each checked when it is asked for: to check them all takes long enough
    for others to be let in between."""
    count("len(prompts)", len(values), 1, limits.MAX_ADD_PROMPTS)
    seen: set[str] = set()
    piece: list[prompt_pb2.Prompt] = []
    piece_bytes = 0
    for row, value in enumerate(values):
        piece_bytes += prompt(f"prompts[{row}]", value)
        if value.prompt_id in seen:
            raise InvalidRequestError(
                f"prompts[{row}].prompt_id={_shown(value.prompt_id)}: must occur once in a request"
            )
        seen.add(value.prompt_id)
        piece.append(value)
        if len(piece) == PIECE_PROMPTS or piece_bytes > PIECE_BYTES:
            yield piece
            piece, piece_bytes = [], 0
    yield piece


def embeddings(
    values: Sequence[prompt_pb2.PromptEmbedding],
) -> Iterator[list[prompt_pb2.PromptEmbedding]]:
    """The embeddings in pieces, each checked when it is asked for."""
    count("len(embeddings)", len(values), 1, limits.MAX_ADD_EMBEDDINGS)
    seen: set[str] = set()
    for start in range(0, len(values), PIECE_PROMPTS):
        piece = list(values[start : start + PIECE_PROMPTS])
        for row, value in enumerate(piece, start):
            name = f"embeddings[{row}]"
            text(f"{name}.prompt_id", value.prompt_id, limits.MAX_PROMPT_ID_BYTES)
            _embedding(f"{name}.embedding", value.embedding, 1)
            if value.prompt_id in seen:
                raise InvalidRequestError(
                    f"{name}.prompt_id={_shown(value.prompt_id)}: must occur once in a request"
                )
            seen.add(value.prompt_id)
        yield piece


def outcomes(value: batch_pb2.Outcomes) -> None:
    rows = len(value.slots)
    count("len(outcomes.slots)", rows, 1, limits.MAX_REPORT_ATTEMPTS)
    _length("outcomes.rewards", len(value.rewards), rows)
    if value.token_counts:
        _length("outcomes.token_counts", len(value.token_counts), rows)
    for name, channel in value.channels.items():
        _length(f"outcomes.channels[{_shown(name)}].values", len(channel.values), rows)


def prompt(name: str, value: prompt_pb2.Prompt) -> int:
    """Check a prompt; the bytes of its text, payload and embedding."""
    text(f"{name}.prompt_id", value.prompt_id, limits.MAX_PROMPT_ID_BYTES)
    text(f"{name}.domain", value.domain, limits.MAX_DOMAIN_BYTES)
    size = len(value.text.encode()) + len(value.payload_json.encode())
    count(f"{name}: bytes of text and payload_json", size, 0, limits.MAX_PROMPT_BYTES)
    if value.payload_json:
        _json_object(f"{name}.payload_json", value.payload_json)
    count(f"len({name}.tags)", len(value.tags), 0, limits.MAX_TAGS)
    for tag in value.tags:
        text(f"{name}.tags", tag, limits.MAX_TAG_BYTES)
    count(f"len({name}.features)", len(value.features), 0, limits.MAX_FEATURES)
    for key, number in value.features.items():
        text(f"{name}.features", key, limits.MAX_TAG_BYTES)
        if not math.isfinite(number):
            raise InvalidRequestError(f"{name}.features[{_shown(key)}]={number}: must be finite")
    if value.embedding:
        _embedding(f"{name}.embedding", value.embedding)
    return size + 4 * len(value.embedding)


def _embedding(name: str, values: Sequence[float], least: int = 0) -> None:
    count(f"len({name})", len(values), least, limits.MAX_EMBEDDING_LENGTH)
    most = limits.MAX_EMBEDDING_VALUE
    is_wrong = ~(np.abs(np.array(values, np.float32)) <= most)  # so that NaN is wrong
    if is_wrong.any():
        at = int(is_wrong.argmax())
        raise InvalidRequestError(f"{name}[{at}]={values[at]}: must be in [{-most}, {most}]")


def _json_object(name: str, value: str) -> None:
    try:
        parsed = _JSON.decode(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{name}={_shown(value)}: must be JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRequestError(f"{name}={_shown(value)}: must be a JSON object")


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_no_json)
"""Made once: to make it takes longer than to read a short text."""


def _length(name: str, length: int, rows: int) -> None:
    if length != rows:
        raise InvalidRequestError(f"len({name})={length}: must be {rows}, as outcomes.slots")


def _shown(value: str) -> str:
    return repr(value if len(value) <= 64 else value[:61] + "...")
