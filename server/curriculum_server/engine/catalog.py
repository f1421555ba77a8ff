"""The prompts of a run, as the server holds them: ids, domains and encoded messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curriculum_api.errors import CorruptStateError
from curriculum_server.wire import split_prompt_fields


class Catalog:
    """Append-only. A prompt's index is its position; nothing is ever removed."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.index: dict[str, int] = {}
        self.fields: list[bytes] = []
        """Each prompt as a `prompt_field`, encoded once and served as it is."""
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
        fields = list(split_prompt_fields(payload))
        if not len(entries["ids"]) == len(entries["domains"]) == len(fields):
            raise CorruptStateError(f"a chunk of prompts behind {len(self)} is incomplete")
        for prompt_id, domain in zip(entries["ids"], entries["domains"], strict=True):
            self.index[prompt_id] = len(self.ids)
            self.ids.append(prompt_id)
            self._domain_of.append(self._domain_index.setdefault(domain, len(self.domains)))
            if self._domain_of[-1] == len(self.domains):
                self.domains.append(domain)
        self.fields += fields
        self.chunk_count += 1


def encode_chunk(
    ids: Sequence[str], domains: Sequence[str], fields: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """The stored form of a chunk: (catalog, payload)."""
    catalog = json.dumps({"ids": list(ids), "domains": list(domains)}, separators=(",", ":"))
    return catalog.encode(), b"".join(fields)
