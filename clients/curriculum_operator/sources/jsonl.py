"""JSON Lines: one object per line, plain or gzipped. Blank lines are skipped."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from curriculum_api.errors import InvalidRequestError
from curriculum_operator.sources import Record

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class JsonlSource:
    """Lines count from 1, as editors count them."""

    path: Path
    unit: str = "line"

    def records(self) -> Iterator[Record]:
        with _opened(self.path) as lines:
            try:
                for number, line in enumerate(lines, start=1):
                    if number == 1:
                        line = line.removeprefix(_BOM)
                    if line.strip():
                        yield _record(number, line)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise InvalidRequestError(f"{self.path}: broken gzip: {error}") from None


@contextlib.contextmanager
def spooled(stream: IO[bytes], unit: str = "line") -> Iterator[JsonlSource]:
    """Copies what can be read only once to a temporary file, which lives as long as the context."""
    with tempfile.NamedTemporaryFile(prefix="curriculum-", suffix=".jsonl") as file:
        shutil.copyfileobj(stream, file)
        file.flush()
        yield JsonlSource(Path(file.name), unit)


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _record(number: int, line: bytes) -> Record:
    try:
        return Record(number, json.loads(line.decode(), parse_constant=_refuse_constant))
    except UnicodeDecodeError as error:
        return Record(number, problem=f"is not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return Record(number, problem=f"is not JSON at column {error.colno}: {error.msg}")
    except RecursionError:
        return Record(number, problem="is nested too deeply")
    except ValueError as error:
        return Record(number, problem=f"is not JSON: {error}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
