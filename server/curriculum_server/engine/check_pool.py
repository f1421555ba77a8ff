"""Whether a run's prompts are all there and can be served."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError

from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import MAX_DOMAINS
from curriculum_api.v1 import batch_pb2, operator_service_pb2, prompt_pb2
from curriculum_server import validate
from curriculum_server.engine.catalog import decode_embeddings
from curriculum_server.engine.check_embeddings import check_embedding_chunks
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
"""Some 5 ms, after which others have theirs."""
Prompts = Sequence[prompt_pb2.Prompt]
_NOTHING = None, 0, b""
PROMPT_FIELD = batch_pb2.ServedPrompt.PROMPT_FIELD_NUMBER


async def check_pool(
    redis: Redis, keys: RunKeys, document: Document, findings: Findings
) -> array[int]:
    """Look at every chunk and all embeddings; gives a hash of each prompt_id."""
    hashes, lengths, domains, embedded = array("q"), set[int](), set[str](), bytearray()
    for chunk in range(document.chunk_count):
        ((catalog, payload),) = await load_chunks(redis, keys, chunk, chunk + 1)
        for key, blob in ((keys.catalog(chunk), catalog), (keys.payload(chunk), payload)):
            if blob is None:
                findings.error("chunk_missing", f"{shown(key)} is missing", RESTORE)
        key = keys.catalog(chunk)
        ids, length, rows = _entries(key, catalog, findings) if catalog is not None else _NOTHING
        lengths |= {length} - {0}
        embedded += rows
        if ids is not None and payload is not None:
            await _check_payload(keys.payload(chunk), ids, payload, findings)
        hashes.extend(hash(prompt_id) for prompt_id, _ in ids or ())
        domains.update(domain for _, domain in ids or ())
        await asyncio.sleep(0)
    known = None if findings.found else embedded
    lengths |= await check_embedding_chunks(redis, keys, document, known, findings)
    if len(lengths) > 1:
        findings.error(
            "embeddings_uneven",
            f"embeddings have {sorted(lengths)} numbers: must be alike",
            RESTORE,
        )
    if len(domains) > MAX_DOMAINS:
        problem = f"the catalog names {len(domains)} domains: must be at most {MAX_DOMAINS}"
        findings.error("domains_exceed_limit", problem, RESTORE)
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
) -> tuple[list[tuple[str, str]] | None, int, bytes]:
    """(prompt_id, domain) of a chunk, None if they cannot be read; how long its embeddings are, 0
    if it has none; and for each prompt whether it has one."""
    try:
        entries = json.loads(catalog)
        ids, domains = entries["ids"], entries["domains"]
        if all(isinstance(text, str) for text in (*ids, *domains)) and ids:
            length, by_row = decode_embeddings(entries)
            rows = bytes(row in by_row for row in range(len(ids)))
            return list(zip(ids, domains, strict=True)), length, rows
        problem = "names no prompts"
    except DAMAGE as error:
        problem = repr(error)
    findings.error("catalog_broken", f"{shown(key)} cannot be read: {problem}", RESTORE)
    return _NOTHING


async def _check_payload(
    key: str, ids: list[tuple[str, str]], payload: bytes, findings: Findings
) -> None:
    prompts = _decoded_whole(ids, payload)
    if prompts is None:
        prompts = await _decoded_singly(key, ids, payload, findings)
    for count, prompt in enumerate(prompts, 1):
        problem = _problem_of(prompt)
        if problem:
            findings.error("prompt_broken", f"{shown(key)}: {problem}", RESTORE)
        if count % PROMPTS_PER_TURN == 0:
            await asyncio.sleep(0)


def _problem_of(prompt: prompt_pb2.Prompt) -> str:
    """Why no request could have brought a prompt, or why it must not be served."""
    name = f"prompt {prompt.prompt_id!r}"
    if prompt.embedding:
        return f"{name}.embedding: must be in the catalog, not in what is served"
    try:
        validate.prompt(name, prompt)
    except InvalidRequestError as error:
        return str(error)
    return ""


def _decoded_whole(ids: list[tuple[str, str]], payload: bytes) -> Prompts | None:
    """A chunk's prompts if its encoding is that of a request to add them, as it should be; in half
    the time that it takes to say what is not."""
    try:
        chunk = operator_service_pb2.AddPromptsRequest.FromString(payload)
    except DecodeError:
        return None
    same = [(prompt.prompt_id, prompt.domain) for prompt in chunk.prompts] == ids
    is_whole = same and chunk.SerializeToString(deterministic=True) == payload
    return chunk.prompts if is_whole else None


async def _decoded_singly(
    key: str, ids: list[tuple[str, str]], payload: bytes, findings: Findings
) -> Prompts:
    """Those of a chunk's prompts that can be read."""
    count, prompts = 0, list[prompt_pb2.Prompt]()
    try:
        for content in split_prompt_fields(payload):
            prompt = _decoded(*ids[count], content) if count < len(ids) else None
            if prompt is not None:
                prompts.append(prompt)
            elif count < len(ids):
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
        return prompts
    if count != len(ids):
        problem = f"{shown(key)} holds {count} prompts: must be {len(ids)}"
        findings.error("chunk_miscounted", problem, RESTORE)
    return prompts


def _decoded(prompt_id: str, domain: str, content: bytes) -> prompt_pb2.Prompt | None:
    """The prompt in a field, if it is this one."""
    try:
        message = prompt_message(content)
        prompt = prompt_pb2.Prompt.FromString(message)
    except (DecodeError, IndexError):
        return None
    # What is served is the content as it is, so its head must be right too.
    head = content[: len(content) - len(message)]
    is_whole = head == tag(PROMPT_FIELD, LENGTH_DELIMITED) + varint(len(message))
    same = prompt.prompt_id == prompt_id and prompt.domain == domain
    return prompt if is_whole and same else None
