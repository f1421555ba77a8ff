"""Where published weights lie, and whether they are all there."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from curriculum_probe.engines import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""
_OPTIONAL = ("lm_head.weight", "rotary_emb.inv_freq")
"""What some who save a model leave out, since it follows from the rest."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and what its files say that they hold."""

    folder: Path
    shapes: Mapping[str, tuple[int, ...]]
    """By the tensors' names."""

    def check_like(self, other: Checkpoint) -> None:
        """See that it has the other one's tensors, in their shapes.

        Raises:
            CheckpointError: it does not.
        """
        for name, shape in other.shapes.items():
            found = self.shapes.get(name)
            if found != shape and not name.endswith(_OPTIONAL):
                raise CheckpointError(f"{self.folder}: {name} is {found or 'missing'}, not {shape}")


def whole_checkpoint(uri: str) -> Checkpoint:
    """A checkpoint whose safetensors files are complete, as their headers tell.

    Raises:
        CheckpointError: it is missing, elsewhere or half-written.
    """
    folder = _local(uri)
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for path in _files(folder):
            shapes |= _shapes(path)
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{folder}: half-written or damaged: {error}") from error
    return Checkpoint(folder, shapes)


def _local(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise CheckpointError(f"uri={uri!r}: must be a folder that can be read from here")
    path = Path(unquote(parts.path) if parts.scheme else uri)
    if not uri or not path.is_absolute():
        raise CheckpointError(f"uri={uri!r}: must be an absolute path or a file:// URI")
    return path


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.exists():
        return [folder / SINGLE]
    shards = json.loads(index.read_bytes())["weight_map"].values()
    return [folder / name for name in sorted(set(shards))]


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """A file is a header of so many bytes, then the tensors where the header says."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} has no header")
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    wanted, found = 8 + header_bytes + end, path.stat().st_size
    if found != wanted:
        raise ValueError(f"{path.name} has {found} bytes of {wanted}")
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}
