"""Whether the embeddings that came after their prompts are all there, each of a prompt without."""

from __future__ import annotations

import asyncio

from curriculum_server.engine.check_keys import RESTORE
from curriculum_server.engine.embedding_chunk import decode_embedding_chunk
from curriculum_server.engine.findings import Findings, shown
from curriculum_server.store.connection import Redis
from curriculum_server.store.document import Document
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.load import load_embedding_chunks


async def check_embedding_chunks(
    redis: Redis,
    keys: RunKeys,
    document: Document,
    embedded: bytearray | None,
    findings: Findings,
) -> set[int]:
    """Look at every chunk of them; gives the lengths of their embeddings.

    Args:
        embedded: for each prompt whether it came with an embedding; None where that is not known.
    """
    lengths = set[int]()
    for number in range(document.embedding_chunk_count):
        key = shown(keys.embedding(number))
        (chunk,) = await load_embedding_chunks(redis, keys, number, number + 1)
        if chunk is None:
            findings.error("embedding_chunk_missing", f"{key} is missing", RESTORE)
            continue
        try:
            length, by_index = decode_embedding_chunk(chunk)
        except ValueError as error:
            problem = f"{key} cannot be read: {error}"
            findings.error("embedding_chunk_broken", problem, RESTORE)
            continue
        lengths.add(length)
        if embedded is not None:
            _check_prompts(key, list(by_index), embedded, findings)
        await asyncio.sleep(0)
    return lengths


def _check_prompts(key: str, indices: list[int], embedded: bytearray, findings: Findings) -> None:
    if indices[-1] >= len(embedded):
        problem = f"{key} names prompt {indices[-1]} of {len(embedded)}"
        findings.error("embeddings_beyond_pool", problem, RESTORE)
        return
    repeated = [index for index in indices if embedded[index]]
    if repeated:
        problem = f"{key} names prompt {repeated[0]}, which has an embedding already"
        findings.error("embeddings_repeated", problem, RESTORE)
    for index in indices:
        embedded[index] = 1
