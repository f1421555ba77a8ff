"""Embeddings that come after their prompts: which prompts lack one, and adding them.

They describe prompts from when they are at least as many as the prompts that are left without any:
when half of a pool has one, three quarters, seven eighths and so on, and all. For features of a
million prompts take many seconds to build, and a pool of which few prompts have an embedding is
better described by its texts. Whoever adds decides that, and the document says it: so every server
describes prompts alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from curriculum_api.errors import InvalidRequestError
from curriculum_server.engine.catalog import Catalog
from curriculum_server.engine.embedding_chunk import EMBEDDING_DTYPE, encode_embedding_chunk
from curriculum_server.engine.run import Run
from curriculum_server.store.commit import Change
from curriculum_server.store.document import Document

PAGE_BYTES = 1 << 22
"""Of the prompts of a page; it ends behind the one that brings it here."""


@dataclass(frozen=True)
class NewEmbedding:
    """A prompt's embedding, as EMBEDDING_DTYPE."""

    prompt_id: str
    embedding: bytes


@dataclass(frozen=True)
class UnembeddedPage:
    """Prompts without an embedding."""

    fields: Sequence[bytes]
    """Each as a `prompt_field`."""
    next: int | None
    """Where the next page begins; None at the end."""
    unembedded_count: int
    """All that there are."""


async def add_embeddings(run: Run, given: Sequence[NewEmbedding]) -> int:
    """Give embeddings to those prompts that have none, all in one step; how many these are.

    Raises:
        InvalidRequestError: a prompt is not in the pool, or embeddings are of two lengths.
    """
    fresh: dict[int, bytes] = {}
    chunk = b""

    async def encode() -> None:
        nonlocal fresh, chunk
        fresh = _missing(run.mirror.catalog, given)
        chunk = encode_embedding_chunk(fresh) if fresh else b""
        await asyncio.sleep(0)

    def append_chunk(document: Document) -> tuple[Document, Change] | None:
        if not fresh:
            return None
        number = document.embedding_chunk_count
        grown = replace(document, embedding_chunk_count=number + 1)
        if _are_enough(run.mirror.catalog, len(fresh)):
            grown = replace(grown, used_embedding_chunk_count=number + 1)
        return grown, Change(sets={run.keys.embedding(number): chunk})

    async with run.lock:
        await run.change_layout(append_chunk, encode)
    return len(fresh)


def _missing(catalog: Catalog, given: Sequence[NewEmbedding]) -> dict[int, bytes]:
    """Those of prompts that have none, by index."""
    length, fresh = catalog.embedding_length, {}
    for new in given:
        index = catalog.index.get(new.prompt_id)
        if index is None:
            raise InvalidRequestError(
                f"embeddings.prompt_id={new.prompt_id!r}: must be a prompt of the pool"
            )
        own = len(new.embedding) // EMBEDDING_DTYPE.itemsize
        if length and own != length:
            raise InvalidRequestError(
                f"embeddings.embedding: {own} numbers of prompt_id={new.prompt_id!r}: must be "
                f"{length}, as the run's first embedding has"
            )
        length = own
        if not catalog.is_embedded(index):
            fresh[index] = new.embedding
    return fresh


def _are_enough(catalog: Catalog, added_count: int) -> bool:
    return catalog.waiting_embedding_count + added_count >= catalog.unembedded_count - added_count


async def unembedded_page(run: Run, start: int, limit: int) -> UnembeddedPage:
    """Up to so many prompts from an index on that have no embedding, in the order of the pool."""
    async with run.lock:
        await run.sync()
        catalog, fields, size = run.mirror.catalog, list[bytes](), 0
        index = catalog.next_unembedded(start)
        while index is not None and len(fields) < limit and size < PAGE_BYTES:
            fields.append(catalog.fields[index])
            size += len(fields[-1])
            index = catalog.next_unembedded(index + 1)
        return UnembeddedPage(fields, index, catalog.unembedded_count)
