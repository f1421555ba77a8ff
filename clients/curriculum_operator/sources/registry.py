"""Finds the reader for what was named on the command line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from curriculum_api.errors import InvalidRequestError
from curriculum_operator.sources import Source
from curriculum_operator.sources.columnar import HuggingFaceSource, ParquetSource, is_hugging_face
from curriculum_operator.sources.gym import SCHEME, generated
from curriculum_operator.sources.jsonl import JsonlSource, spooled

STDIN = "-"

_KINDS = "FILE.jsonl, FILE.jsonl.gz, -, FILE.parquet, a save_to_disk directory, reasoning-gym:TASK"


def is_generated(name: str) -> bool:
    return name.startswith(SCHEME)


@contextlib.contextmanager
def opened(name: str) -> Iterator[Source]:
    """The source; temporary files of it are gone after the context."""
    if is_generated(name):
        with generated(name) as source:
            yield source
    elif name == STDIN:
        with spooled(sys.stdin.buffer) as source:
            yield source
    else:
        yield _on_disk(Path(name))


def _on_disk(path: Path) -> Source:
    if not path.exists():
        raise InvalidRequestError(f"source={path}: no such file or directory")
    if path.is_dir():
        if not is_hugging_face(path):
            raise InvalidRequestError(f"source={path}: no dataset written by save_to_disk")
        return HuggingFaceSource(path)
    if path.name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")):
        return JsonlSource(path)
    if path.suffix == ".parquet":
        return ParquetSource(path)
    raise InvalidRequestError(f"source={path}: unknown kind of file; allowed are {_KINDS}")
