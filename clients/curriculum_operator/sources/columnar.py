"""Parquet files and Hugging Face datasets on disk. Rows count from 0, as those libraries count."""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from curriculum_api.errors import InvalidRequestError
from curriculum_operator.sources import Record

_ROWS_AT_ONCE = 1000


def require(module: str, extra: str) -> Any:
    """Imports an optional library, or says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidRequestError(
            f"this source needs {module} ({error}): pip install 'edge-curriculum[{extra}]'"
        ) from None


@dataclass(frozen=True)
class ParquetSource:
    path: Path
    unit: str = "row"

    def records(self) -> Iterator[Record]:
        parquet = require("pyarrow.parquet", "parquet")
        arrow = require("pyarrow", "parquet")
        number = 0
        try:
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                    for row in batch.to_pylist():
                        yield _record(number, row)
                        number += 1
        except arrow.ArrowInvalid as error:
            raise InvalidRequestError(f"{self.path}: not a Parquet file: {error}") from None


@dataclass(frozen=True)
class HuggingFaceSource:
    """A directory written by `Dataset.save_to_disk`."""

    path: Path
    unit: str = "row"

    def records(self) -> Iterator[Record]:
        datasets = require("datasets", "huggingface")
        rows = datasets.load_from_disk(str(self.path))
        if isinstance(rows, Mapping):
            rows = self._only_split(rows)
        for number, row in enumerate(rows.with_format(None)):
            yield _record(number, row)

    def _only_split(self, splits: Mapping[str, Any]) -> Any:
        if len(splits) != 1:
            choices = ", ".join(str(self.path / name) for name in splits)
            raise InvalidRequestError(f"{self.path}: has {len(splits)} splits; name one: {choices}")
        return next(iter(splits.values()))


def is_hugging_face(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _record(number: int, row: Mapping[str, Any]) -> Record:
    try:
        return Record(number, {name: _json_value(name, value) for name, value in row.items()})
    except TypeError as error:
        return Record(number, problem=str(error))


def _json_value(name: str, value: Any) -> Any:
    """The value in JSON's types; raises TypeError for what JSON cannot hold, such as an image."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json_value(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(name, item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{name} holds {type(value).__name__}, which JSON cannot; drop the column")
