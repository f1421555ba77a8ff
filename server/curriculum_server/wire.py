"""Encoding batches by hand: each prompt's message is encoded once and its bytes are joined.

Building 512 protobuf messages costs .6 ms, joining their bytes a tenth of it.
"""

from __future__ import annotations

import numpy as np
from curriculum_api.v1 import batch_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from curriculum_server.engine.catalog import Catalog
from curriculum_server.store.batches import BatchRecord

_PROMPTS = batch_pb2.Batch.PROMPTS_FIELD_NUMBER
_SERVED = batch_pb2.ServedPrompt
_LENGTH_DELIMITED, _VARINT, _FIXED32 = 2, 0, 5

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


def varint(value: int) -> bytes:
    """A number in protobuf's base 128."""
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)


def tag(field_number: int, wire_type: int) -> bytes:
    """What stands before a field's value."""
    return varint(field_number << 3 | wire_type)


def length_delimited(field_number: int, content: bytes) -> bytes:
    """A field that holds a message, string or bytes."""
    return tag(field_number, _LENGTH_DELIMITED) + varint(len(content)) + content


def encode_batch(record: BatchRecord, catalog: Catalog) -> bytes:
    """The bytes of the record's `Batch` message."""
    head = batch_pb2.Batch(
        batch_id=record.batch_id,
        timeline=record.timeline,
        policy_step=record.policy_step,
        lease_expire_time=Timestamp(seconds=record.expire_s),
        shortfall=record.shortfall,
    )
    pieces = [head.SerializeToString()]
    prompt_tag = tag(_SERVED.PROMPT_FIELD_NUMBER, _LENGTH_DELIMITED)
    slot_tag = tag(_SERVED.SLOT_FIELD_NUMBER, _VARINT)
    batch_tag = tag(_PROMPTS, _LENGTH_DELIMITED)
    slots = record.slots
    rates, width = _rates(record), _RATES_DTYPE.itemsize
    endings = _endings(record)
    for slot, index in enumerate(slots["index"].tolist()):
        message = catalog.messages[index]
        content = b"".join(
            (
                slot_tag,
                varint(slot),
                prompt_tag,
                varint(len(message)),
                message,
                rates[slot * width : slot * width + width],
                endings[slot],
            )
        )
        pieces += (batch_tag, varint(len(content)), content)
    return b"".join(pieces)


def _rates(record: BatchRecord) -> bytes:
    """Every slot's three floats with their tags, one after the other."""
    rates = np.zeros(len(record.slots), _RATES_DTYPE)
    rates["tag_mean"] = _SERVED.PASS_RATE_FIELD_NUMBER << 3 | _FIXED32
    rates["tag_low"] = _SERVED.PASS_RATE_LOW_FIELD_NUMBER << 3 | _FIXED32
    rates["tag_high"] = _SERVED.PASS_RATE_HIGH_FIELD_NUMBER << 3 | _FIXED32
    for name in ("pass_rate", "pass_rate_low", "pass_rate_high"):
        rates[name] = record.slots[name]
    return rates.tobytes()


def _endings(record: BatchRecord) -> list[bytes]:
    """Every slot's attempt_count and reason; few values occur, so each is encoded once."""
    count_tag = tag(_SERVED.ATTEMPT_COUNT_FIELD_NUMBER, _VARINT)
    reason_tag = tag(_SERVED.REASON_FIELD_NUMBER, _VARINT)
    pairs = list(
        zip(record.slots["attempt_count"].tolist(), record.slots["reason"].tolist(), strict=True)
    )
    known = {p: count_tag + varint(p[0]) + reason_tag + varint(p[1]) for p in set(pairs)}
    return [known[pair] for pair in pairs]
