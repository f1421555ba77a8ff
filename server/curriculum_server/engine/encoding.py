"""Encoding batches by hand: each prompt's field is encoded once, when it is added, and then joined.

Building 512 protobuf messages costs .6 ms, joining their bytes about .2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from curriculum_api.v1 import batch_pb2
from curriculum_server.wire import FIXED32, LENGTH_DELIMITED, VARINT, tag, varint

_SERVED = batch_pb2.ServedPrompt
_RATES_DTYPE = np.dtype(
    [
        ("tag_mean", "u1"),
        ("pass_rate", "<f4"),
        ("tag_low", "u1"),
        ("pass_rate_low", "<f4"),
        ("tag_high", "u1"),
        ("pass_rate_high", "<f4"),
    ]
)


def encode_prompts(slots: NDArray[np.void], fields: Sequence[bytes]) -> bytes:
    """The slots as the `prompts` of a `Batch`, from the pool's prompt fields by index."""
    rates, width = _rates(slots), _RATES_DTYPE.itemsize
    pieces: list[bytes] = []
    rows = zip(slots["index"].tolist(), _endings(slots), strict=True)
    for slot, (index, ending) in enumerate(rows):
        head, field, at = _slot_field(slot), fields[index], slot * width
        length = len(head) + len(field) + width + len(ending)
        pieces += (_served_prefix(length), head, field, rates[at : at + width], ending)
    return b"".join(pieces)


@lru_cache(maxsize=1 << 13)
def _slot_field(slot: int) -> bytes:
    return tag(_SERVED.SLOT_FIELD_NUMBER, VARINT) + varint(slot)


@lru_cache(maxsize=1 << 16)
def _served_prefix(length: int) -> bytes:
    return tag(batch_pb2.Batch.PROMPTS_FIELD_NUMBER, LENGTH_DELIMITED) + varint(length)


def _rates(slots: NDArray[np.void]) -> bytes:
    """Every slot's three floats with their tags, one after the other."""
    rates = np.zeros(len(slots), _RATES_DTYPE)
    rates["tag_mean"] = _SERVED.PASS_RATE_FIELD_NUMBER << 3 | FIXED32
    rates["tag_low"] = _SERVED.PASS_RATE_LOW_FIELD_NUMBER << 3 | FIXED32
    rates["tag_high"] = _SERVED.PASS_RATE_HIGH_FIELD_NUMBER << 3 | FIXED32
    for name in ("pass_rate", "pass_rate_low", "pass_rate_high"):
        rates[name] = slots[name]
    return rates.tobytes()


def _endings(slots: NDArray[np.void]) -> list[bytes]:
    """Every slot's attempt_count and reason; few values occur, so each is encoded once."""
    count_tag = tag(_SERVED.ATTEMPT_COUNT_FIELD_NUMBER, VARINT)
    reason_tag = tag(_SERVED.REASON_FIELD_NUMBER, VARINT)
    pairs = list(zip(slots["attempt_count"].tolist(), slots["reason"].tolist(), strict=True))
    known = {p: count_tag + varint(p[0]) + reason_tag + varint(p[1]) for p in set(pairs)}
    return [known[pair] for pair in pairs]
