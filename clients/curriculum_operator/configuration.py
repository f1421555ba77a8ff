"""Builds a RunConfig from a TOML file and from assignments.

What may be set, and of which type, is read from the contract's descriptors, so a field that the
contract gains can be set here at once. Ranges are the server's to check.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from curriculum_api.errors import InvalidRequestError
from curriculum_api.v1.run_pb2 import Channel, RunConfig

_UNIT_S = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")

_INTEGER_BITS = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}

_SECTIONS = ("selection", "sampling")
"""Parts of the configuration whose keys have names of their own, so that these will do."""
_TRUTHS = {"true": True, "false": False}
_KEY_WORDS = {"domain_shares": "DOMAIN", "objective": "NAME"}
"""What stands for the keys of a table that are free."""


def config_from_toml(path: Path) -> RunConfig:
    """The configuration in a file whose keys mirror RunConfig's fields."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: not TOML: {error}") from None
    config = RunConfig()
    _fill(config, table, prefix="", where=f"{path}: ")
    return config


def assign(config: RunConfig, key: str, text: str) -> None:
    """Sets one field from words as typed: `selection.optimism=1.5`, or for short `optimism=1.5`.

    A list of texts is one of JSON's, or one text: `stop=["a", "b"]`, `stop=a`.
    """
    owner, name, rest = _resolve(config, key)
    value = getattr(owner, name)
    field: Any = owner.DESCRIPTOR.fields_by_name[name]
    if isinstance(value, Mapping) and rest:
        entry = field.message_type.fields_by_name["value"]
        value[rest] = _scalar(entry, key, _typed(entry, text))  # type: ignore[index]
    elif isinstance(value, Duration):
        value.CopyFrom(duration(key, text))
    elif not rest and _is_list(value) and field.message_type is None:
        value[:] = [_scalar(field, key, item) for item in _items(text)]
    elif rest or isinstance(value, Message | Mapping) or _is_list(value):
        raise InvalidRequestError(f"{key}={text}: cannot be set so; {_allowed(RunConfig())}")
    else:
        setattr(owner, name, _scalar(field, key, _typed(field, text)))


def channel(text: str) -> Channel:
    """A channel written `name:min:max`."""
    name, *bounds = text.split(":")
    try:
        low, high = (float(bound) for bound in bounds)
    except ValueError:
        raise InvalidRequestError(
            f"channel={text}: write name:min:max, for example confidence:0:1"
        ) from None
    return Channel(name=name, min_value=low, max_value=high)


def weights(text: str) -> dict[str, float]:
    """An objective written `name=weight,name=weight`."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not name or name in found or math.isnan(number):
            raise InvalidRequestError(
                f"objective={text}: write name=weight,name=weight, each name once, for example "
                "reward=0.7,explanation=0.3"
            )
        found[name] = number
    return found


def duration(key: str, value: object) -> Duration:
    """A duration from seconds as a number, or from text such as `30m` or `1h30m`."""
    seconds: float | None = None
    if isinstance(value, str):
        value = _number_or_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and _DURATION.fullmatch(value):
        seconds = sum(float(n) * _UNIT_S[unit] for n, unit in _DURATION_PART.findall(value))
    if seconds is None or not 0 <= seconds < 1e9:
        raise InvalidRequestError(f"{key}={value!r}: write a duration, for example 45s, 30m or 2h")
    return Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))


def allowed_keys(message: Message, prefix: str = "") -> list[str]:
    """Every key below the message that may be set, dotted."""
    keys: list[str] = []
    for field in message.DESCRIPTOR.fields:
        if field.GetOptions().deprecated:
            continue
        value = getattr(message, field.name)
        if isinstance(value, Message) and not isinstance(value, Duration):
            keys += allowed_keys(value, f"{prefix}{field.name}.")
        else:
            suffix = f".{_KEY_WORDS[field.name]}" if isinstance(value, Mapping) else ""
            keys.append(f"{prefix}{field.name}{suffix}")
    return keys


def _resolve(config: RunConfig, key: str) -> tuple[Message, str, str]:
    """The message that owns the key, the field's name there, and what follows it."""
    owner: Message = config
    name, _, rest = key.partition(".")
    for section in _SECTIONS:
        part = getattr(config, section)
        if name == section and rest:
            owner, (name, _, rest) = part, rest.partition(".")
            break
        if name in part.DESCRIPTOR.fields_by_name:
            owner = part
    if name not in owner.DESCRIPTOR.fields_by_name:
        raise InvalidRequestError(f"{key}: unknown key; {_allowed(RunConfig())}")
    return owner, name, rest


def _fill(message: Message, table: Mapping[str, Any], *, prefix: str, where: str) -> None:
    for name, value in table.items():
        field: Any = message.DESCRIPTOR.fields_by_name.get(name)
        key = f"{where}{prefix}{name}"
        if field is None:
            raise InvalidRequestError(f"{key}: unknown key; {_allowed(message)}")
        current = getattr(message, name)
        if isinstance(current, Duration):
            current.CopyFrom(duration(key, value))
        elif isinstance(current, Mapping):
            entry = field.message_type.fields_by_name["value"]
            for domain, share in _table(key, value).items():
                current[domain] = _scalar(entry, f"{key}.{domain}", share)  # type: ignore[index]
        elif isinstance(current, Message):
            _fill(current, _table(key, value), prefix=f"{prefix}{name}.", where=where)
        elif _is_list(current) and field.message_type is None:
            current[:] = [_scalar(field, key, item) for item in _list(key, value, "texts")]
        elif _is_list(current):
            _fill_list(current, key, value)
        else:
            setattr(message, name, _scalar(field, key, value))


def _fill_list(target: Any, key: str, value: object) -> None:
    for number, item in enumerate(_list(key, value, "tables")):
        added = target.add()
        table = _table(f"{key}[{number}]", item)
        _fill(added, table, prefix="", where=f"{key}[{number}].")
        missing = [name for name in added.DESCRIPTOR.fields_by_name if name not in table]
        if missing:
            raise InvalidRequestError(f"{key}[{number}]: {', '.join(missing)} missing")


def _scalar(field: Any, key: str, value: object) -> object:
    """The value if the field can hold it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            raise InvalidRequestError(f"{key}={value!r}: must be text")
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise InvalidRequestError(f"{key}={value!r}: must be true or false")
    elif field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        if not number:
            raise InvalidRequestError(f"{key}={value!r}: must be a number")
    else:
        top = 2 ** _INTEGER_BITS[field.cpp_type] - 1
        if not number or not isinstance(value, int) or not 0 <= value <= top:
            raise InvalidRequestError(f"{key}={value!r}: must be a whole number in [0, {top}]")
    return value


def _typed(field: Any, text: str) -> int | float | str:
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _TRUTHS.get(text, text)
    return text if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else _number_or_text(text)


def _items(text: str) -> list[object]:
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    return found if isinstance(found, list) else [text]


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _table(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{key}={value!r}: must be a table")
    return value


def _list(key: str, value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{key}={value!r}: must be a list of {what}")
    return value


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _allowed(message: Message) -> str:
    return f"allowed are {', '.join(allowed_keys(message))}"
