"""One record of a source as a Prompt, or what is wrong with it.

A record is a JSON object. Some of its fields have a meaning; every other field goes into the
payload, where the verifier finds it.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curriculum_api import limits
from curriculum_api.v1.prompt_pb2 import Prompt

MESSAGES_KEY = "messages"
"""Where the payload keeps a prompt that came as chat messages."""

PARAGRAPH = "\n\n"


class RecordError(ValueError):
    """What is wrong with one record."""


@dataclass(frozen=True)
class FieldNames:
    """Which fields of a record hold what. None takes the first usual name that is there."""

    id: str | None = None
    text: str | None = None
    domain: str | None = None
    tags: str | None = None
    payload: str | None = None
    embedding: str | None = None
    features: tuple[str, ...] = ()
    """Numeric fields that become features, beside those in the field `features`."""
    default_domain: str | None = None
    """The domain of records that name none."""

    def given(self) -> dict[str, str]:
        """The options by which fields were named, by field."""
        options = {
            "--id-field": self.id,
            "--text-field": self.text,
            "--domain-field": self.domain,
            "--tags-field": self.tags,
            "--payload-field": self.payload,
            "--embedding-field": self.embedding,
        }
        named = {field: option for option, field in options.items() if field is not None}
        return named | dict.fromkeys(self.features, "--feature-field")


@dataclass(frozen=True)
class Parsed:
    """A prompt, and 64 bits that tell it from others with the same id."""

    prompt: Prompt
    digest: int


def prompt_from_record(record: Any, names: FieldNames) -> Parsed:
    """Raises RecordError, naming the field, its value and what is allowed."""
    if not isinstance(record, dict):
        raise RecordError(f"must be an object, is {_shown(record)}")
    rest = {name: value for name, value in record.items() if value is not None}
    prompt_id = _take(rest, names.id, ("prompt_id", "id"), required=names.id is not None)
    text = _take(rest, names.text, ("text", "prompt"), required=True)
    domain = _take(rest, names.domain, ("domain",), required=False) or names.default_domain
    tags = _take(rest, names.tags, ("tags",), required=False)
    payload = _payload(_take(rest, names.payload, ("payload",), required=False))
    embedding = _embedding(_take(rest, names.embedding, ("embedding",), required=False))
    features = _features(rest, names.features)
    if isinstance(text, list):
        messages, text = text, _joined_messages(text)
        _put(payload, MESSAGES_KEY, messages)
    for name, value in rest.items():
        _put(payload, name, value)
    if domain is None:
        raise RecordError(
            f"{names.domain or 'domain'} is missing; --domain NAME is that of records without one"
        )
    prompt = Prompt(
        domain=_name("domain", domain, limits.MAX_DOMAIN_BYTES),
        text=_text(text),
        payload_json=_dumps(payload) if payload else "",
        tags=_tags(tags),
        features=features,
        embedding=embedding,
    )
    size = len(prompt.text.encode()) + len(prompt.payload_json.encode())
    if size > limits.MAX_PROMPT_BYTES:
        raise RecordError(f"text and payload have {size} bytes; at most {limits.MAX_PROMPT_BYTES}")
    # The order of the payload's keys means nothing, so neither id nor digest depends on it.
    canonical = _dumps([prompt.domain, prompt.text, payload], sort_keys=True).encode()
    prompt.prompt_id = _prompt_id(prompt_id, canonical)
    described = _dumps([tags, features], sort_keys=True).encode() + array("f", embedding).tobytes()
    digest = hashlib.blake2b(canonical + described, digest_size=8).digest()
    return Parsed(prompt, int.from_bytes(digest, "big"))


def content_id(canonical: bytes) -> str:
    """An id from what is asked and how it is verified: the same content has the same id anywhere.

    Tags, features and the embedding describe a prompt and do not make it another one, so they are
    left out.
    """
    return hashlib.sha256(canonical).hexdigest()[:32]


def _take(rest: dict[str, Any], named: str | None, usual: Sequence[str], *, required: bool) -> Any:
    """Removes and returns the value of the first of the names that the record has."""
    candidates = (named,) if named is not None else usual
    for name in candidates:
        if name in rest:
            return rest.pop(name)
    if required:
        raise RecordError(f"{' or '.join(candidates)} is missing")
    return None


def _payload(value: Any) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RecordError(f"payload={_shown(value)}: text must hold a JSON object") from None
    if not isinstance(value, dict):
        raise RecordError(f"payload={_shown(value)}: must be an object")
    return dict(value)


def _put(payload: dict[str, Any], name: str, value: Any) -> None:
    if payload.get(name, value) != value:
        raise RecordError(f"{name}: is a field of the record and of the payload, and they differ")
    payload[name] = value


def _features(rest: dict[str, Any], named: Sequence[str]) -> dict[str, float]:
    value = rest.pop("features", None) or {}
    if not isinstance(value, dict):
        raise RecordError(f"features={_shown(value)}: must be an object of numbers")
    # Columnar files give every row every key, so an absent feature arrives as null.
    features = {name: number for name, number in value.items() if number is not None}
    features |= {name: rest.pop(name) for name in named if name in rest}
    if len(features) > limits.MAX_FEATURES:
        raise RecordError(f"features: {len(features)} of them; at most {limits.MAX_FEATURES}")
    return {
        _name("features", name, limits.MAX_TAG_BYTES): _feature(name, value)
        for name, value in features.items()
    }


def _feature(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"features.{name}={_shown(value)}: must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecordError(f"features.{name}={_shown(value)}: must be finite")
    return number


def _embedding(value: Any) -> list[float]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RecordError(f"embedding={_shown(value)}: must be a list of numbers")
    if len(value) > limits.MAX_EMBEDDING_LENGTH:
        raise RecordError(f"embedding: {len(value)} numbers; at most {limits.MAX_EMBEDDING_LENGTH}")
    most = limits.MAX_EMBEDDING_VALUE
    for at, number in enumerate(value):
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not -most <= number <= most:
            raise RecordError(
                f"embedding[{at}]={_shown(number)}: must be a number in [{-most:.0f}, {most:.0f}]"
            )
    return value


def _joined_messages(messages: list[Any]) -> str:
    contents = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            raise RecordError(
                f"text: the message {_shown(message)} must be an object whose content is text"
            )
        contents.append(content)
    return PARAGRAPH.join(contents)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RecordError(f"text={_shown(value)}: must be text or a list of messages")
    if not value:
        raise RecordError("text is empty")
    return _utf8("text", value)


def _tags(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RecordError(f"tags={_shown(value)}: must be a list")
    if len(value) > limits.MAX_TAGS:
        raise RecordError(f"tags: {len(value)} of them; at most {limits.MAX_TAGS}")
    return [_name("tags", tag, limits.MAX_TAG_BYTES) for tag in value]


def _prompt_id(value: Any, canonical: bytes) -> str:
    if value is None:
        return content_id(canonical)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _name("prompt_id", value, limits.MAX_PROMPT_ID_BYTES)


def _name(field: str, value: Any, max_bytes: int) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{field}={_shown(value)}: must be text")
    size = len(_utf8(field, value).encode())
    if not 1 <= size <= max_bytes:
        raise RecordError(f"{field}={_shown(value)}: has {size} bytes, must have 1 to {max_bytes}")
    return value


def _utf8(field: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError(f"{field}={_shown(value)}: is not valid Unicode") from None
    return value


def _dumps(value: Any, *, sort_keys: bool = False) -> str:
    try:
        text = json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            sort_keys=sort_keys,
            separators=(",", ":"),
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"payload cannot be written as JSON: {error}") from None
    return _utf8("payload", text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
