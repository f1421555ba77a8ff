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
from curriculum_server.wire import split_prompt_fields

EMBEDDING_DTYPE = np.dtype("<f2")
"""Half the bytes of what is sent, and 11 bits are more than an embedding is worth."""


class Catalog:
    """Append-only. A prompt's index is its position; nothing is ever removed."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.index: dict[str, int] = {}
        self.fields: list[bytes] = []
        """Each prompt as a `prompt_field`, encoded once and served as it is."""
        self.embeddings: dict[int, bytes] = {}
        """By index, those that there are, as EMBEDDING_DTYPE. They are not part of `fields`: a
        batch would carry them to trainers, who have no use for them."""
        self.embedding_length = 0
        """Numbers of each embedding; 0 where there is none."""
        self.features: Features | None = None
        """Of the prompts when they were last prepared; see `prepare_features`."""
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

    def _append_embeddings(self, entries: Mapping[str, Any]) -> None:
        try:
            length, by_row = decode_embeddings(entries)
        except EMBEDDING_DAMAGE as error:
            raise CorruptStateError(
                f"the embeddings of prompts behind {len(self)} are damaged: {error}"
            ) from error
        if length and self.embedding_length not in (0, length):
            raise CorruptStateError(
                f"the embeddings of prompts behind {len(self)} have {length} numbers: must have "
                f"{self.embedding_length}, as those before"
            )
        self.embedding_length = self.embedding_length or length
        self.embeddings |= {len(self) + row: vector for row, vector in by_row.items()}


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
