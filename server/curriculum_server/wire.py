"""Protobuf's wire format, as far as batches are encoded by hand."""

from __future__ import annotations

from collections.abc import Iterator

from curriculum_api.v1 import batch_pb2

VARINT, LENGTH_DELIMITED, FIXED32 = 0, 2, 5
_PROMPT = batch_pb2.ServedPrompt.PROMPT_FIELD_NUMBER


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
    return tag(field_number, LENGTH_DELIMITED) + varint(len(content)) + content


def prompt_field(message: bytes) -> bytes:
    """A `Prompt` message as the field of the `ServedPrompt` that carries it.

    Pools are kept in this form, from the store to the answer, so that serving joins bytes.
    """
    return length_delimited(_PROMPT, message)


def split_prompt_fields(blob: bytes) -> Iterator[bytes]:
    """The single fields of several prompt fields in a row."""
    at = 0
    while at < len(blob):
        start = at
        end = _content_start(blob, start)
        at = end + _length(blob, start + 1)
        yield blob[start:at]


def prompt_message(field: bytes) -> bytes:
    """The `Prompt` message inside a prompt field."""
    return field[_content_start(field, 0) :]


def _content_start(blob: bytes, at: int) -> int:
    at += 1
    while blob[at] & 0x80:
        at += 1
    return at + 1


def _length(blob: bytes, at: int) -> int:
    value = shift = 0
    while True:
        value |= (blob[at] & 0x7F) << shift
        if not blob[at] & 0x80:
            return value
        at, shift = at + 1, shift + 7
