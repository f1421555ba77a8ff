"""A run in a file: a zip with one member for each part, and a manifest with their checksums.

The manifest is written last, when all checksums are known, and read first. What is written goes
under a temporary name until it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from curriculum_api.errors import InvalidRequestError

FORMAT = "edge-curriculum run"
VERSION = 1
MANIFEST = "manifest.json"
MAX_MEMBER_BYTES = 64 * 1024 * 1024
"""More than a message may have, so that a member that claims more is no part."""
_DATE = (1980, 1, 1, 0, 0, 0)
"""So that the same run gives the same bytes."""

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,  # bz2's word, where a flipped bit names that compression
    EOFError,
    NotImplementedError,  # zipfile's, for a compression that it does not know
)


class BadArchiveError(InvalidRequestError):
    """The file is none, is damaged, or is of another version; nothing was imported."""


@dataclass(frozen=True)
class Manifest:
    """What a file says of itself."""

    run_id: str = ""
    written_by: str = ""
    create_time: str = ""
    """When it was written."""
    prompt_count: int = 0
    window_count: int = 0
    members: dict[str, str] = field(default_factory=dict)
    """By name, the SHA-256 of the content."""
    format: str = FORMAT
    version: int = VERSION


class Writer:
    """Writes parts into an open zip."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.members: dict[str, str] = {}
        self.byte_count = 0

    def add(self, name: str, content: bytes) -> None:
        self._write(name, content)
        self.members[name] = hashlib.sha256(content).hexdigest()
        self.byte_count += len(content)

    def finish(self, manifest: Manifest) -> None:
        self._write(MANIFEST, json.dumps(asdict(manifest), indent=1).encode())

    def _write(self, name: str, content: bytes) -> None:
        # Columns are mostly zeros; more than the lightest compression costs time and gains little.
        member = zipfile.ZipInfo(name, _DATE)
        self._archive.writestr(member, content, zipfile.ZIP_DEFLATED, compresslevel=1)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Gives a writer; the file takes its name when all went well, else nothing is left of it."""
    with _temporary_beside(path) as file:
        temporary = Path(file.name)
        try:
            with zipfile.ZipFile(file, "w") as archive:
                yield Writer(archive)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _temporary_beside(path: Path) -> IO[bytes]:
    try:
        return tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        )
    except OSError as error:
        # Whoever reads this named a folder that is not there, and never the temporary file.
        error.filename = str(path.parent)
        raise


class Reader:
    """Reads a file whose manifest is understood."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        self._path = path
        self.digest = ""
        """Of the manifest, and so of the whole content."""
        self.manifest = self._read_manifest()

    @property
    def names(self) -> list[str]:
        return list(self.manifest.members)

    def read(self, name: str) -> bytes:
        """A part; raises BadArchiveError unless it is what was written."""
        content = self._read(name)
        if hashlib.sha256(content).hexdigest() != self.manifest.members[name]:
            raise self._bad(f"{name} is damaged: its checksum is another one")
        return content

    def _read(self, name: str) -> bytes:
        try:
            if self._archive.getinfo(name).file_size > MAX_MEMBER_BYTES:
                raise self._bad(f"{name} is larger than any part")
            return self._archive.read(name)
        except KeyError:
            raise self._bad(f"{name} is missing") from None
        except DAMAGE as error:
            raise self._bad(f"{name} is damaged: {error}") from None

    def _read_manifest(self) -> Manifest:
        content = self._read(MANIFEST)
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            values: dict[str, Any] = json.loads(content)
            found = (values["format"], values["version"])
        except (ValueError, TypeError, KeyError):
            raise self._bad(f"{MANIFEST} cannot be read") from None
        if found != (FORMAT, VERSION):
            raise self._bad(
                f"is {found[0]!r}, version {found[1]!r}: this program reads {FORMAT!r}, version "
                f"{VERSION}; use the one that wrote it, or a newer one"
            )
        try:
            manifest = Manifest(**values)
            members = dict(manifest.members)
        except (ValueError, TypeError):
            raise self._bad(f"{MANIFEST} cannot be read") from None
        listed, there = {*members, MANIFEST}, set(self._archive.namelist())
        for name in sorted(listed ^ there):
            said = "is missing" if name in listed else "is not in the manifest"
            raise self._bad(f"{name} {said}")
        return manifest

    def _bad(self, problem: str) -> BadArchiveError:
        return BadArchiveError(f"{self._path}: {problem}; nothing was imported")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """Gives a reader of a file."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise BadArchiveError(
            f"{path}: is no exported run, or only the beginning of one; nothing was imported"
        ) from None
    with archive:
        yield Reader(archive, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
