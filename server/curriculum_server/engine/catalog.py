"""The prompts of a run, as the server holds them: ids, domains and encoded messages."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.features import Features
from curriculum_api.errors import CorruptStateError
from curriculum_api.limits import MAX_EMBEDDING_LENGTH
from curriculum_server.engine.embedding_chunk import EMBEDDING_DTYPE, decode_embedding_chunk
from curriculum_server.wire import split_prompt_fields

_NONE, _GIVEN, _ADDED = range(3)
"""Whether a prompt has an embedding, and whether it came with it or later."""


class Catalog:
    """Append-only. A prompt's index is its position; nothing is ever removed."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.index: dict[str, int] = {}
        self.fields: list[bytes] = []
        """Each prompt as a `prompt_field`, encoded once and served as it is."""
        self.embeddings: dict[int, bytes] = {}
        """By index, those that describe prompts, as EMBEDDING_DTYPE. They are not part of `fields`:
        a batch would carry them to trainers, who have no use for them. `use_embedding_chunks`
        replaces the dict, so that its identity tells what was made of which."""
        self.embedding_chunk_count = 0
        self._waiting: list[dict[int, bytes]] = []
        """Of each of the last chunks of them, those that describe nothing yet."""
        self._origin_of = bytearray()
        self.embedding_length = 0
        """Numbers of each embedding; 0 where there is none."""
        self.features: Features | None = None
        """Of the prompts when they were last prepared; see `prepare_features`."""
        self.features_of: dict[int, bytes] = self.embeddings
        """The embeddings that `features` were made of."""
        self.preparing: asyncio.Task[None] | None = None
        """The preparation that runs, or the last one."""
        self.chunk_count = 0
        self.domains: list[str] = []
        self._domain_index: dict[str, int] = {}
        self._domain_of: list[int] = []
        self._domain_N: NDArray[np.int32] = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def domain_N(self) -> NDArray[np.int32]:
        """(N,) index into `domains`."""
        if len(self._domain_N) != len(self._domain_of):
            self._domain_N = np.asarray(self._domain_of, np.int32)
        return self._domain_N

    def domain(self, index: int) -> str:
        return self.domains[self._domain_of[index]]

    def append_chunk(self, catalog: bytes | None, payload: bytes | None) -> None:
        """Add one stored chunk.

        Raises:
            CorruptStateError: a part is missing, the parts disagree, or embeddings are damaged.
        """
        if catalog is None or payload is None:
            raise CorruptStateError(f"a chunk of prompts behind {len(self)} is missing")
        entries = json.loads(catalog)
        fields = list(split_prompt_fields(payload))
        if not len(entries["ids"]) == len(entries["domains"]) == len(fields):
            raise CorruptStateError(f"a chunk of prompts behind {len(self)} is incomplete")
        self._append_embeddings(entries)
        for prompt_id, domain in zip(entries["ids"], entries["domains"], strict=True):
            self.index[prompt_id] = len(self.ids)
            self.ids.append(prompt_id)
            self._domain_of.append(self._domain_index.setdefault(domain, len(self.domains)))
            if self._domain_of[-1] == len(self.domains):
                self.domains.append(domain)
        self.fields += fields
        self.chunk_count += 1

    @property
    def used_embedding_chunk_count(self) -> int:
        return self.embedding_chunk_count - len(self._waiting)

    @property
    def waiting_embedding_count(self) -> int:
        """Embeddings that describe nothing yet."""
        return sum(map(len, self._waiting))

    @property
    def unembedded_count(self) -> int:
        """Prompts without any embedding."""
        return self._origin_of.count(_NONE)

    def next_unembedded(self, start: int) -> int | None:
        """The first prompt from an index on that has no embedding."""
        found = self._origin_of.find(_NONE, start)
        return None if found < 0 else found

    def is_embedded(self, index: int) -> bool:
        return self._origin_of[index] != _NONE

    def given_embedding(self, index: int) -> bytes:
        """What a prompt came with; empty for none."""
        return self.embeddings[index] if self._origin_of[index] == _GIVEN else b""

    def append_embedding_chunk(self, chunk: bytes | None) -> None:
        """Add one stored chunk of embeddings, which describe prompts once
        `use_embedding_chunks` says so.

        Raises:
            CorruptStateError: it is missing, damaged, or does not fit the prompts.
        """
        name = f"the embeddings of chunk {self.embedding_chunk_count}"
        if chunk is None:
            raise CorruptStateError(f"{name} are missing")
        try:
            length, by_index = decode_embedding_chunk(chunk)
        except ValueError as error:
            raise CorruptStateError(f"{name} are damaged: {error}") from error
        if any(index >= len(self) or self.is_embedded(index) for index in by_index):
            raise CorruptStateError(
                f"{name} are of prompts that have one already, or are not there"
            )
        self._take_length(name, length)
        for index in by_index:
            self._origin_of[index] = _ADDED
        self._waiting.append(by_index)
        self.embedding_chunk_count += 1

    def use_embedding_chunks(self, count: int) -> None:
        """Let the first so many chunks of embeddings describe prompts."""
        fresh = self._waiting[: count - self.used_embedding_chunk_count]
        if not fresh:
            return
        self._waiting = self._waiting[len(fresh) :]
        embeddings = dict(self.embeddings)
        for by_index in fresh:
            embeddings |= by_index
        self.embeddings = embeddings

    def _append_embeddings(self, entries: Mapping[str, Any]) -> None:
        try:
            length, by_row = decode_embeddings(entries)
        except EMBEDDING_DAMAGE as error:
            raise CorruptStateError(
                f"the embeddings of prompts behind {len(self)} are damaged: {error}"
            ) from error
        self._take_length(f"the embeddings of prompts behind {len(self)}", length)
        self.embeddings |= {len(self) + row: vector for row, vector in by_row.items()}
        origin_of = bytearray(len(entries["ids"]))
        for row in by_row:
            origin_of[row] = _GIVEN
        self._origin_of += origin_of

    def _take_length(self, name: str, length: int) -> None:
        if length and self.embedding_length not in (0, length):
            raise CorruptStateError(
                f"{name} have {length} numbers: must have {self.embedding_length}, as those before"
            )
        self.embedding_length = self.embedding_length or length


def encode_chunk(
    ids: Sequence[str],
    domains: Sequence[str],
    fields: Sequence[bytes],
    embeddings: Sequence[bytes] = (),
) -> tuple[bytes, bytes]:
    """The stored form of a chunk: (catalog, payload). Embeddings are of one length or empty."""
    entries: dict[str, Any] = {"ids": list(ids), "domains": list(domains)}
    rows = [row for row, vector in enumerate(embeddings) if vector]
    if rows:
        values = b"".join(embeddings)
        entries["embeddings"] = {"rows": rows, "values": base64.b64encode(values).decode()}
    catalog = json.dumps(entries, separators=(",", ":"))
    return catalog.encode(), b"".join(fields)


EMBEDDING_DAMAGE = (ValueError, TypeError, KeyError, AttributeError)
"""What `decode_embeddings` raises of what `encode_chunk` never makes."""


def decode_embeddings(entries: Mapping[str, Any]) -> tuple[int, dict[int, bytes]]:
    """How long a chunk's embeddings are and, by row, what they are; (0, {}) where it has none."""
    column = entries.get("embeddings")
    if column is None:
        return 0, {}
    rows = list(map(int, column["rows"]))
    values = base64.b64decode(column["values"], validate=True)
    if not rows or rows != sorted(set(rows)) or not 0 <= rows[0] <= rows[-1] < len(entries["ids"]):
        raise ValueError("they are of prompts that are not there")
    length, rest = divmod(len(values), len(rows) * EMBEDDING_DTYPE.itemsize)
    if rest or not 1 <= length <= MAX_EMBEDDING_LENGTH:
        raise ValueError(f"{len(values)} bytes of {len(rows)} embeddings")
    if not np.isfinite(np.frombuffer(values, EMBEDDING_DTYPE)).all():
        raise ValueError("they must be finite")
    size = length * EMBEDDING_DTYPE.itemsize
    return length, {row: values[at * size : (at + 1) * size] for at, row in enumerate(rows)}
