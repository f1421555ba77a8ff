"""Whether a run's prompts are all there and can be served."""

from __future__ import annotations

import asyncio
import json
from array import array

import numpy as np
from google.protobuf.message import DecodeError

from curriculum_api.v1 import batch_pb2, operator_service_pb2, prompt_pb2
from curriculum_server.engine.catalog import decode_embeddings
from curriculum_server.engine.check_keys import RESTORE
from curriculum_server.engine.findings import Findings, shown
from curriculum_server.store.connection import Redis
from curriculum_server.store.document import Document
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.load import load_chunks
from curriculum_server.store.parts import DAMAGE
from curriculum_server.wire import (
    LENGTH_DELIMITED,
    prompt_message,
    split_prompt_fields,
    tag,
    varint,
)

PROMPTS_PER_TURN = 200
"""Some 2 ms, after which others have theirs."""
PROMPT_FIELD = batch_pb2.ServedPrompt.PROMPT_FIELD_NUMBER


async def check_pool(
    redis: Redis, keys: RunKeys, document: Document, findings: Findings
) -> array[int]:
    """Look at every chunk; gives a hash of each prompt_id."""
    hashes, lengths = array("q"), set[int]()
    for chunk in range(document.chunk_count):
        ((catalog, payload),) = await load_chunks(redis, keys, chunk, chunk + 1)
        for key, blob in ((keys.catalog(chunk), catalog), (keys.payload(chunk), payload)):
            if blob is None:
                findings.error("chunk_missing", f"{shown(key)} is missing", RESTORE)
        key = keys.catalog(chunk)
        ids, length = _entries(key, catalog, findings) if catalog is not None else (None, 0)
        lengths |= {length} - {0}
        if ids is not None and payload is not None and not _are_prompts(ids, payload):
            await _check_prompts(keys.payload(chunk), ids, payload, findings)
        hashes.extend(hash(prompt_id) for prompt_id, _ in ids or ())
        await asyncio.sleep(0)
    if len(lengths) > 1:
        findings.error(
            "embeddings_uneven",
            f"embeddings have {sorted(lengths)} numbers: must be alike",
            RESTORE,
        )
    return hashes


def check_count(document: Document, hashes: array[int], findings: Findings) -> None:
    """Look at the whole pool, from the hashes of its prompt_ids."""
    if findings.found:
        return  # of what is missing the count says nothing more
    if len(hashes) != document.prompt_count:
        findings.error(
            "pool_miscounted",
            f"the catalog names {len(hashes)} prompts: must be {document.prompt_count}",
            RESTORE,
        )
    repeated = len(hashes) - len(np.unique(np.array(hashes, np.int64)))
    if repeated:
        findings.error(
            "prompt_repeated", f"the catalog names {repeated} prompts more than once", RESTORE
        )


def _entries(
    key: str, catalog: bytes, findings: Findings
) -> tuple[list[tuple[str, str]] | None, int]:
    """(prompt_id, domain) of a chunk, None if they cannot be read; and how long its embeddings are,
    0 if it has none."""
    try:
        entries = json.loads(catalog)
        ids, domains = entries["ids"], entries["domains"]
        if all(isinstance(text, str) for text in (*ids, *domains)) and ids:
            length, _ = decode_embeddings(entries)
            return list(zip(ids, domains, strict=True)), length
        problem = "names no prompts"
    except DAMAGE as error:
        problem = repr(error)
    findings.error("catalog_broken", f"{shown(key)} cannot be read: {problem}", RESTORE)
    return None, 0


def _are_prompts(ids: list[tuple[str, str]], payload: bytes) -> bool:
    """Whether all is well with a chunk, in half the time that it takes to say what is not: its
    encoding is that of a request to add it."""
    try:
        chunk = operator_service_pb2.AddPromptsRequest.FromString(payload)
    except DecodeError:
        return False
    same = [(prompt.prompt_id, prompt.domain) for prompt in chunk.prompts] == ids
    return same and chunk.SerializeToString(deterministic=True) == payload


async def _check_prompts(
    key: str, ids: list[tuple[str, str]], payload: bytes, findings: Findings
) -> None:
    count = 0
    try:
        for content in split_prompt_fields(payload):
            if count < len(ids) and not _is_prompt(*ids[count], content):
                findings.error(
                    "payload_broken",
                    f"{shown(key)}: the prompt {ids[count][0]!r} cannot be read, or is another one",
                    RESTORE,
                )
            count += 1
            if count % PROMPTS_PER_TURN == 0:
                await asyncio.sleep(0)
    except IndexError:
        findings.error("payload_broken", f"{shown(key)} ends within a prompt", RESTORE)
        return
    if count != len(ids):
        problem = f"{shown(key)} holds {count} prompts: must be {len(ids)}"
        findings.error("chunk_miscounted", problem, RESTORE)


def _is_prompt(prompt_id: str, domain: str, content: bytes) -> bool:
    try:
        message = prompt_message(content)
        prompt = prompt_pb2.Prompt.FromString(message)
    except (DecodeError, IndexError):
        return False
    # What is served is the content as it is, so its head must be right too.
    head = content[: len(content) - len(message)]
    is_whole = head == tag(PROMPT_FIELD, LENGTH_DELIMITED) + varint(len(message))
    return is_whole and prompt.prompt_id == prompt_id and prompt.domain == domain
