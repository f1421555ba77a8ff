"""Adding prompts to a run's pool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from curriculum_api.errors import AlreadyExistsError, InvalidRequestError
from curriculum_api.limits import MAX_DOMAINS
from curriculum_server.engine.catalog import encode_chunk
from curriculum_server.engine.embedding_chunk import EMBEDDING_DTYPE
from curriculum_server.engine.run import Run
from curriculum_server.store.commit import Change
from curriculum_server.store.document import Document

MAX_POOL_PROMPTS = (1 << 32) - 1
"""Indices are u32."""
CHUNK_EMBEDDING_BYTES = 1 << 21
"""A chunk is encoded, and later decoded, at one go: some 15 ms for so many bytes of embeddings."""


@dataclass(frozen=True)
class NewPrompt:
    """A prompt to add: its id, domain, encoded `prompt_field` and encoded embedding."""

    prompt_id: str
    domain: str
    field: bytes
    """As it is served: without the embedding."""
    embedding: bytes = b""
    """As EMBEDDING_DTYPE; empty for none."""


@dataclass(frozen=True)
class Added:
    """What an addition did."""

    added_count: int
    existing_count: int
    prompt_count: int


async def add_prompts(run: Run, prompts: Sequence[NewPrompt]) -> Added:
    """Add what is not there yet, all in one step.

    Raises:
        AlreadyExistsError: a prompt_id is taken by other content.
        InvalidRequestError: more domains than a run may have, or embeddings of two lengths.
    """
    fresh: list[NewPrompt] = []
    chunks: list[tuple[bytes, bytes]] = []

    async def encode() -> None:
        fresh[:] = _unknown(run, prompts)
        _check_room(run, fresh)
        _check_embeddings(run, fresh)
        chunks.clear()
        for some in _chunks(fresh):
            chunks.append(encode_chunk(*zip(*map(_parts, some), strict=True)))
            await asyncio.sleep(0)

    def append_chunks(document: Document) -> tuple[Document, Change] | None:
        if not fresh:
            return None
        keys: dict[str, bytes] = {}
        for chunk, (catalog, payload) in enumerate(chunks, document.chunk_count):
            keys |= {run.keys.catalog(chunk): catalog, run.keys.payload(chunk): payload}
        grown = replace(
            document,
            chunk_count=document.chunk_count + len(chunks),
            prompt_count=document.prompt_count + len(fresh),
        )
        return grown, Change(sets=keys)

    async with run.lock:
        document = await run.change_layout(append_chunks, encode)
    return Added(len(fresh), len(prompts) - len(fresh), document.prompt_count)


def _chunks(fresh: Sequence[NewPrompt]) -> Iterator[list[NewPrompt]]:
    chunk: list[NewPrompt] = []
    size = 0
    for prompt in fresh:
        chunk.append(prompt)
        size += len(prompt.embedding)
        if size >= CHUNK_EMBEDDING_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _unknown(run: Run, prompts: Sequence[NewPrompt]) -> list[NewPrompt]:
    catalog, fresh = run.mirror.catalog, []
    for prompt in prompts:
        index = catalog.index.get(prompt.prompt_id)
        if index is None:
            fresh.append(prompt)
        elif (catalog.fields[index], catalog.given_embedding(index)) != (
            prompt.field,
            prompt.embedding,
        ):
            raise AlreadyExistsError(
                f"prompts.prompt_id={prompt.prompt_id!r}: is in the pool with other content"
            )
    return fresh


def _check_room(run: Run, fresh: Sequence[NewPrompt]) -> None:
    domains = {*run.mirror.catalog.domains, *(prompt.domain for prompt in fresh)}
    if len(domains) > MAX_DOMAINS:
        raise InvalidRequestError(
            f"prompts.domain: {len(domains)} domains in a run: at most {MAX_DOMAINS}"
        )
    if len(run.mirror.catalog) + len(fresh) > MAX_POOL_PROMPTS:
        raise InvalidRequestError(f"prompts: a pool holds at most {MAX_POOL_PROMPTS} prompts")


def _check_embeddings(run: Run, fresh: Sequence[NewPrompt]) -> None:
    """Embeddings of a run are of one length: that of its first."""
    length = run.mirror.catalog.embedding_length
    for prompt in fresh:
        own = len(prompt.embedding) // EMBEDDING_DTYPE.itemsize
        if own and length and own != length:
            raise InvalidRequestError(
                f"prompts.embedding: {own} numbers of prompt_id={prompt.prompt_id!r}: must be "
                f"{length}, as the run's first embedding has"
            )
        length = length or own


def _parts(prompt: NewPrompt) -> tuple[str, str, bytes, bytes]:
    return prompt.prompt_id, prompt.domain, prompt.field, prompt.embedding
