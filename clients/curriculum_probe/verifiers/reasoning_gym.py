"""Reasoning Gym's own scores.

A completion is scored by what stands between its last <answer> tags, or as a whole without them.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from curriculum_probe.verifiers.base import Payload, Scorer, UnverifiableError
from curriculum_probe.verifiers.registry import require

_BOARD_TASKS = frozenset({"arc_agi", "rearc"})
"""Compare boards as tuples, which JSON made lists; kakurasu, for one, wants lists."""


def check(payload: Payload) -> None:
    require("reasoning_gym", "reasoning_gym")
    _fields(payload)


def prepare(payload: Payload) -> Scorer:
    from reasoning_gym.utils import extract_answer

    task, entry, config = _fields(payload)
    dataset = _dataset(task, json.dumps(config, sort_keys=True))
    known = _with_tuples(entry) if task in _BOARD_TASKS else entry

    def score(completion: str, /) -> float:
        answer = extract_answer(completion)
        return float(dataset.score_answer(completion.strip() if answer is None else answer, known))

    return score


def _fields(payload: Payload) -> tuple[str, dict[str, Any], dict[str, Any]]:
    task, entry, config = payload.get("task"), payload.get("entry"), payload.get("config", {})
    if not isinstance(task, str) or not isinstance(entry, dict) or not isinstance(config, dict):
        raise UnverifiableError(
            "verifier='reasoning_gym': the payload must have a task, an entry and, if any, a config"
        )
    return task, entry, config


@lru_cache(maxsize=256)
def _dataset(task: str, config_json: str) -> Any:
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(task, **json.loads(config_json))
    except (AssertionError, TypeError, ValueError) as error:
        raise UnverifiableError(f"verifier='reasoning_gym': task={task!r}: {error}") from error


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
