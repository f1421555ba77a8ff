"""An exported run as named parts: the pieces of its keys, and `run.json` for the rest.

    run.json                       the document, the newest step and the windows' group counters
    prompts/<chunk>/catalog/<at>   prompts/<chunk>/payload/<at>
    embeddings/<chunk>/<at>        embeddings that came after their prompts
    windows/<window>/<column>/<at> a column, or the log of servings
    open/<number>/<at>             batches that were open at a checkpoint

`<at>` is the piece's place in its key, in bytes. Every piece but a key's last has `piece_bytes`. A
window's columns are read together, piece by piece, over the whole pool, so that each has as many
pieces as another and a piece may lack zeros at its end. Of all other keys the first piece that is
shorter than `piece_bytes`, possibly empty, is the last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from curriculum_api.errors import InvalidRequestError
from curriculum_server.store.columns import SERVED
from curriculum_server.store.document import Document
from curriculum_server.store.inventory import Kind, identify
from curriculum_server.store.keys import RunKeys

FORMAT_VERSION = 1
PIECE_BYTES = 1 << 18
"""65,536 prompts of a column; a page of a window with all channels is 5.5 MB at most."""
MAX_PIECE_BYTES = 1 << 22
MAX_KEY_BYTES = 1 << 29
"""What Redis allows a string."""
CELL_BYTES = 4
DAMAGE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)
"""What reading JSON raises that is none, or not of the form that it must have."""
MANIFEST = "run.json"

_NAME = re.compile(
    r"(prompts|embeddings|windows|open)/([0-9]{1,18})/(?:([a-z0-9_:]{1,80})/)?([0-9]{1,10})"
)


@dataclass(frozen=True)
class Item:
    """Keys that are read together."""

    keys: tuple[tuple[str, str], ...]
    """(the part's name but for its place, the key)."""
    byte_count: int | None = None
    """Of columns, how long they may be; None for a key that ends with a short piece."""
    required: bool = False
    """Whether it is damage if the key is not there; a column may have nothing in it."""


@dataclass(frozen=True)
class Manifest:
    """What a run holds beside its pieces."""

    document: Document
    policy_step: int
    groups: Mapping[int, tuple[int, int]]
    """By window: (completed groups, mixed groups)."""
    piece_bytes: int

    def encode(self) -> bytes:
        # When it was created is what the store says that creates it.
        document = asdict(replace(self.document, create_ms=-1))
        content = {
            "format": FORMAT_VERSION,
            "piece_bytes": self.piece_bytes,
            "document": document,
            "policy_step": self.policy_step,
            "groups": {str(window): list(counts) for window, counts in self.groups.items()},
        }
        return json.dumps(content, sort_keys=True).encode()

    @classmethod
    def decode(cls, content: bytes) -> Manifest:
        """Back from `encode`.

        Raises:
            InvalidRequestError: it is none, or of a format that is not known.
            StateError: its document was written by a newer server.
        """
        try:
            values: dict[str, Any] = json.loads(content)
            if values["format"] != FORMAT_VERSION:
                raise InvalidRequestError(
                    f"parts.name={MANIFEST!r}: format={values['format']}: must be {FORMAT_VERSION}"
                )
            document = Document.from_json(json.dumps(values["document"]))
            groups = {int(w): (int(g), int(m)) for w, (g, m) in values["groups"].items()}
            piece_bytes = int(values["piece_bytes"])
            if not CELL_BYTES <= piece_bytes <= MAX_PIECE_BYTES or piece_bytes % CELL_BYTES:
                raise InvalidRequestError(
                    f"parts.name={MANIFEST!r}: piece_bytes={piece_bytes}: must be a multiple of "
                    f"{CELL_BYTES} up to {MAX_PIECE_BYTES}"
                )
            return cls(document, int(values["policy_step"]), groups, piece_bytes)
        except DAMAGE as error:
            if isinstance(error, InvalidRequestError):
                raise
            raise InvalidRequestError(f"parts.name={MANIFEST!r}: is damaged: {error!r}") from error


def items(keys: RunKeys, document: Document) -> list[Item]:
    """All that is read of a run with this document, in the order of reading."""
    found = []
    for chunk in range(document.chunk_count):
        catalog, payload = keys.catalog(chunk), keys.payload(chunk)
        found.append(Item(((f"prompts/{chunk}/catalog", catalog),), required=True))
        found.append(Item(((f"prompts/{chunk}/payload", payload),), required=True))
    for chunk in range(document.embedding_chunk_count):
        found.append(Item(((f"embeddings/{chunk}", keys.embedding(chunk)),), required=True))
    names, size = document.column_names, CELL_BYTES * document.prompt_count
    for window in document.windows:
        number = window.window
        parts = [(f"windows/{number}/{name}", keys.column(number, name)) for name in names]
        columns = tuple(part for part in parts if not part[0].endswith(f"/{SERVED}"))
        served = tuple(part for part in parts if part not in columns)
        found += [Item(columns, size), Item(served)]
    for number in sorted(document.kept_batches):
        found.append(Item(((f"open/{number}", keys.open_batches(number)),)))
    return found


def locate(keys: RunKeys, name: str, size: int) -> tuple[str, int]:
    """The key that a part belongs to, and its place there.

    Raises:
        InvalidRequestError: no part has that name, or it lies outside what a key may hold.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise _bad_name(name)
    group, number, member, at = match[1], int(match[2]), match[3], int(match[4])
    if at + size > MAX_KEY_BYTES or size > MAX_PIECE_BYTES:
        raise InvalidRequestError(f"parts.name={name!r}: {size} bytes: must be a smaller piece")
    found = {
        ("prompts", "catalog"): keys.catalog(number),
        ("prompts", "payload"): keys.payload(number),
        ("embeddings", None): keys.embedding(number),
        ("windows", member): keys.column(number, str(member)),
        ("open", None): keys.open_batches(number),
    }.get((group, member))
    kind = identify(found.removeprefix(keys.prefix).encode()) if found else None
    if found is None or kind is None or kind.kind not in _KINDS[group]:
        raise _bad_name(name)
    return found, at


_KINDS = {
    "prompts": {Kind.CATALOG, Kind.PAYLOAD},
    "embeddings": {Kind.EMBEDDING},
    "windows": {Kind.COLUMN},
    "open": {Kind.OPEN_BATCHES},
}


def key_sizes(keys: RunKeys, manifest: Manifest, sizes: Mapping[str, int]) -> dict[str, int]:
    """What every key of the run must be long, from the sizes of the parts that are there; keys
    without content are left out.

    Raises:
        InvalidRequestError: a part is missing, has another size than it must, or belongs nowhere.
    """
    found: dict[str, int] = {}
    known: set[str] = set()
    for item in items(keys, manifest.document):
        for part, key in item.keys:
            for at, name in _places(part, item, manifest.piece_bytes, sizes):
                known.add(name)
                if sizes[name]:
                    found[key] = at + sizes[name]
    for name in sizes:
        if name not in known:
            raise InvalidRequestError(f"parts.name={name!r}: is no part of this run")
    return found


def _places(
    part: str, item: Item, piece_bytes: int, sizes: Mapping[str, int]
) -> Iterator[tuple[int, str]]:
    """The pieces of one key, by place."""
    at = 0
    while item.byte_count is None or at < item.byte_count:
        name = f"{part}/{at}"
        if name not in sizes:
            raise InvalidRequestError(f"parts.name={name!r}: is missing")
        if sizes[name] > piece_bytes:
            raise InvalidRequestError(
                f"parts.name={name!r}: {sizes[name]} bytes: must be at most {piece_bytes}"
            )
        yield at, name
        if item.byte_count is None and sizes[name] < piece_bytes:
            return
        at += piece_bytes


def part_names(item: Item, at: int, contents: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """An item's pieces at one place as parts."""
    return [(f"{part}/{at}", blob) for (part, _), blob in zip(item.keys, contents, strict=True)]


def _bad_name(name: str) -> InvalidRequestError:
    shown = name if len(name) <= 64 else name[:61] + "..."
    return InvalidRequestError(f"parts.name={shown!r}: must be the name of an exported part")
