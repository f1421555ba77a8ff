"""The prompts of a run, as the server holds them: ids, domains and encoded messages."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import numpy as np
from curriculum_api.errors import CorruptStateError
from numpy.typing import NDArray

_LENGTH = struct.Struct(">I")


class Catalog:
    """Append-only. A prompt's index is its position; nothing is ever removed."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.index: dict[str, int] = {}
        self.messages: list[bytes] = []
        """Each prompt's `Prompt` message, encoded once and served as it is."""
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
            CorruptStateError: a part is missing or the parts disagree.
        """
        if catalog is None or payload is None:
            raise CorruptStateError(f"a chunk of prompts behind {len(self)} is missing")
        entries = json.loads(catalog)
        messages = _split(payload)
        if not len(entries["ids"]) == len(entries["domains"]) == len(messages):
            raise CorruptStateError(f"a chunk of prompts behind {len(self)} is incomplete")
        for prompt_id, domain in zip(entries["ids"], entries["domains"], strict=True):
            self.index[prompt_id] = len(self.ids)
            self.ids.append(prompt_id)
            self._domain_of.append(self._domain_index.setdefault(domain, len(self.domains)))
            if self._domain_of[-1] == len(self.domains):
                self.domains.append(domain)
        self.messages += messages
        self.chunk_count += 1


def encode_chunk(
    ids: Sequence[str], domains: Sequence[str], messages: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """The stored form of a chunk: (catalog, payload)."""
    catalog = json.dumps({"ids": list(ids), "domains": list(domains)}, separators=(",", ":"))
    payload = b"".join(part for m in messages for part in (_LENGTH.pack(len(m)), m))
    return catalog.encode(), payload


def _split(payload: bytes) -> list[bytes]:
    messages, at = [], 0
    while at < len(payload):
        (length,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        messages.append(payload[at : at + length])
        at += length
    return messages
