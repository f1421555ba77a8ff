"""The stored form of embeddings that came after their prompts, those of one call together.

    length (u32) | index of each prompt (u32), rising | their numbers in a row (EMBEDDING_DTYPE)

Big-endian but for the embeddings, of which there are as many as fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from curriculum_api.limits import MAX_EMBEDDING_LENGTH

EMBEDDING_DTYPE = np.dtype("<f2")
"""Half the bytes of what is sent, and 11 bits are more than an embedding is worth."""
_HEAD_DTYPE = np.dtype(">u4")


def encode_embedding_chunk(embeddings: Mapping[int, bytes]) -> bytes:
    """Of one length, by their prompts' indices; at least one."""
    indices = sorted(embeddings)
    length = len(embeddings[indices[0]]) // EMBEDDING_DTYPE.itemsize
    head = np.array([length, *indices], _HEAD_DTYPE).tobytes()
    return head + b"".join([embeddings[index] for index in indices])


def decode_embedding_chunk(chunk: bytes) -> tuple[int, dict[int, bytes]]:
    """How long the embeddings are, and what `encode_embedding_chunk` was given.

    Raises:
        ValueError: they are damaged.
    """
    head = _HEAD_DTYPE.itemsize
    length = int.from_bytes(chunk[:head])
    size = length * EMBEDDING_DTYPE.itemsize
    count, rest = divmod(len(chunk) - head, head + size)
    if rest or count < 1 or not 1 <= length <= MAX_EMBEDDING_LENGTH:
        raise ValueError(f"{len(chunk)} bytes of embeddings of {length} numbers")
    indices = np.frombuffer(chunk, _HEAD_DTYPE, count, head).astype(np.int64)
    if (np.diff(indices) <= 0).any():
        raise ValueError("the prompts are not in order")
    values = chunk[head + head * count :]
    if not np.isfinite(np.frombuffer(values, EMBEDDING_DTYPE)).all():
        raise ValueError("they must be finite")
    return length, {
        index: values[at * size : (at + 1) * size] for at, index in enumerate(indices.tolist())
    }
