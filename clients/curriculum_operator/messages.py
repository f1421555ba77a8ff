"""Messages as plain JSON values and as words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from curriculum_api.v1.prompt_pb2 import Band

BANDS: dict[str, Band.ValueType] = {
    name.removeprefix("BAND_").lower(): Band.Value(name)
    for name in Band.keys()  # noqa: SIM118 - the enum's wrapper is no mapping
    if name != "BAND_UNSPECIFIED"
}
"""The bands by the word that people use, in the contract's order."""


def band_word(band: Band.ValueType) -> str:
    return Band.Name(band).removeprefix("BAND_").lower()


def as_json(message: Message) -> dict[str, Any]:
    """The message with every field, in the contract's names; absent fields are null.

    Unlike in protobuf's own JSON, 64-bit integers are numbers. The document still parses back into
    the message with `google.protobuf.json_format`.
    """
    return {field.name: _field_as_json(message, field) for field in message.DESCRIPTOR.fields}


def _field_as_json(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if isinstance(value, Mapping):
        return {key: _value_as_json(value[key], None) for key in sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_value_as_json(item, field) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value_as_json(value, field)


def _value_as_json(value: Any, field: Any) -> Any:
    if isinstance(value, Timestamp | Duration):
        return value.ToJsonString()
    if isinstance(value, Message):
        return as_json(value)
    if field is not None and field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
