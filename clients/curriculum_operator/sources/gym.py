"""Procedural tasks of reasoning-gym, written `reasoning-gym:TASK[,TASK]?size=100&seed=0&…`.

Some tasks draw from Python sets, whose order depends on the interpreter's hash seed, and would
give other prompts on every run. So the generator runs in a child with a fixed hash seed, and what
it prints is kept in a temporary file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import MAX_FEATURES
from curriculum_operator.sources.columnar import require
from curriculum_operator.sources.jsonl import JsonlSource

SCHEME = "reasoning-gym:"
DEFAULT_SIZE = 500
DEFAULT_SEED = 0
"""Fixed, so that the same command gives the same prompts."""

_REFUSED = 3
"""The child's exit status when its message is for the user."""


@dataclass(frozen=True)
class GymSpec:
    """What to generate: `size` prompts of each task."""

    tasks: tuple[str, ...]
    size: int
    seed: int
    parameters: dict[str, str]
    """For the tasks' configurations, as typed."""

    @classmethod
    def parse(cls, text: str) -> GymSpec:
        names, _, query = text.removeprefix(SCHEME).partition("?")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError as error:
            raise InvalidRequestError(f"{text}: write parameters as name=value: {error}") from None
        parameters = dict(pairs)
        if len(parameters) != len(pairs):
            raise InvalidRequestError(f"{text}: a parameter is given twice")
        tasks = tuple(name.strip() for name in names.split(","))
        if not all(tasks) or len(set(tasks)) != len(tasks):
            raise InvalidRequestError(f"{text}: name each task once, as {SCHEME}TASK[,TASK]")
        size = _whole(parameters.pop("size", str(DEFAULT_SIZE)), "size", at_least=1)
        seed = _whole(parameters.pop("seed", str(DEFAULT_SEED)), "seed", at_least=0)
        return cls(tasks, size, seed, parameters)


@contextlib.contextmanager
def generated(text: str) -> Iterator[JsonlSource]:
    """Generates the prompts into a temporary file, which lives as long as the context."""
    GymSpec.parse(text)
    command = [sys.executable, "-m", __name__, text]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.NamedTemporaryFile(prefix="curriculum-", suffix=".jsonl") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )
        if done.returncode == _REFUSED:
            raise InvalidRequestError(done.stderr.strip())
        if done.returncode:
            last_lines = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise InvalidRequestError(f"{text}: the generator failed:\n{last_lines}")
        yield JsonlSource(Path(file.name), "entry")


def entries(spec: GymSpec) -> Iterator[dict[str, Any]]:
    """The records, in the fields of JSON Lines."""
    factory = require("reasoning_gym.factory", "reasoning-gym")
    # All tasks are built before anything is generated: a wrong name shows at once.
    datasets = {task: _dataset(factory, task, spec) for task in spec.tasks}
    for task, (dataset, given) in datasets.items():
        for index in range(spec.size):
            yield _record(task, dataset[index], given)


def _dataset(factory: Any, task: str, spec: GymSpec) -> tuple[Any, dict[str, Any]]:
    if task not in factory.DATASETS:
        raise InvalidRequestError(
            f"task={task}: unknown; allowed are {', '.join(sorted(factory.DATASETS))}"
        )
    _, config_class = factory.DATASETS[task]
    fields = {field.name: field.default for field in dataclasses.fields(config_class)}
    fields = {name: fields[name] for name in sorted(fields.keys() - {"size", "seed"})}
    unknown = [name for name in spec.parameters if name not in fields]
    if unknown:
        allowed = ", ".join(["size", "seed", *fields])
        raise InvalidRequestError(f"{unknown[0]}: {task} has no such field; allowed are {allowed}")
    given = {name: _typed(name, text, fields[name]) for name, text in spec.parameters.items()}
    try:
        dataset = factory.create_dataset(task, size=spec.size, seed=spec.seed, **given)
    except (AssertionError, TypeError, ValueError) as error:
        raise InvalidRequestError(f"{task} refuses {given or 'its defaults'}: {error}") from None
    return dataset, given


def _record(task: str, entry: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    # The index is left out so that the same question from another place in the sequence, or from a
    # neighbouring seed, is the same prompt.
    metadata = {key: value for key, value in entry["metadata"].items() if key != "source_index"}
    payload = {
        "verifier": "reasoning_gym",
        "task": task,
        "entry": {"question": entry["question"], "answer": entry["answer"], "metadata": metadata},
    }
    if given:
        # A few verifiers read the task's configuration.
        payload["config"] = given
    features = difficulty_features(metadata)
    return {"text": entry["question"], "domain": task, "payload": payload, "features": features}


def difficulty_features(metadata: dict[str, Any]) -> dict[str, float]:
    """The entry's own number for each attribute of difficulty, else the range it was drawn from."""
    difficulty = metadata.get("difficulty")
    if not isinstance(difficulty, dict):
        difficulty = {"difficulty": difficulty}
    features: dict[str, float] = {}
    for name, span in difficulty.items():
        own: Any = metadata.get(name)
        if _is_number(own):
            features[name] = float(own)
        elif _is_number(span):
            features[name] = float(span)
        elif isinstance(span, list | tuple) and len(span) == 2 and all(map(_is_number, span)):
            features |= {f"{name}_min": float(span[0]), f"{name}_max": float(span[1])}
    return dict(list(features.items())[:MAX_FEATURES])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _typed(name: str, text: str, default: Any) -> Any:
    """The value in the type of the field's default; what has no plain default may be any JSON."""
    if isinstance(default, str):
        return text
    try:
        value = json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        value = text
    wanted = (
        ("true or false", isinstance(default, bool), isinstance(value, bool)),
        ("a number", _is_number(default), _is_number(value)),
        ("a JSON list", isinstance(default, list | tuple), isinstance(value, list)),
    )
    for kind, applies, fits in wanted:
        if applies and not fits:
            raise InvalidRequestError(f"{name}={text}: must be {kind}")
    return value


def _plain(value: Any) -> Any:
    """What JSON has no type for."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _whole(text: str, name: str, *, at_least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < at_least:
        raise InvalidRequestError(f"{name}={text}: must be a whole number, at least {at_least}")
    return int(text)


def _main(text: str) -> int:
    records = sys.stdout
    try:
        # Some tasks print while they generate.
        with contextlib.redirect_stdout(sys.stderr):
            for record in entries(GymSpec.parse(text)):
                records.write(json.dumps(record, default=_plain) + "\n")
    except InvalidRequestError as error:
        print(error, file=sys.stderr)
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
