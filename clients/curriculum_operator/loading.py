"""Fills a pool from a source: every record is checked before the first prompt is sent.

The check keeps about 150 bytes per record, never the records; the sending reads the source a second
time. Prompts have stable ids and AddPrompts counts what is there
already, so that repeating an interrupted load sends it again and adds only what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from curriculum_api import limits
from curriculum_api.errors import CurriculumError, InvalidRequestError
from curriculum_api.v1.operator_service_pb2 import AddPromptsRequest
from curriculum_api.v1.prompt_pb2 import Prompt
from curriculum_operator.connection import Connection
from curriculum_operator.records import FieldNames, RecordError, prompt_from_record
from curriculum_operator.sources import Record, Source

MAX_SHOWN_PROBLEMS = 20
MAX_SHOWN_FIELDS = 30
MAX_CALL_BYTES = 8 * 1024 * 1024
"""Well under the limit of a message: a lost call costs little to repeat."""

DESCRIPTIONS = ("features", "tags", "embedding")
"""What tells of a prompt before it is attempted, by its field in the contract."""

Advance = Callable[[int], None]
"""Told how many more records are done."""


class BadSourceError(InvalidRequestError):
    """Records that cannot be prompts; nothing was sent."""


@dataclass(frozen=True)
class Survey:
    """What a source holds."""

    record_count: int
    prompt_count: int
    collapsed_count: int
    """Records that repeat an earlier one exactly."""
    domains: dict[str, int]
    """Prompts by domain."""
    described: dict[str, int]
    """Of the prompts those that have features, tags and an embedding, by that word."""
    digests: array[int] = field(repr=False)
    """One per record, in order: the sending notices when the source changed meanwhile."""
    repeats: frozenset[int] = field(repr=False)
    """Positions of the collapsed records."""


@dataclass(frozen=True)
class Loaded:
    """What a load did so far."""

    sent_count: int = 0
    added_count: int = 0
    existing_count: int = 0
    pool_count: int | None = None
    retried_call_count: int = 0


class InterruptedLoadError(CurriculumError):
    """The load stopped early; `loaded` says how far it got, `why` what it was unless Ctrl-C."""

    def __init__(self, message: str, loaded: Loaded, *, why: Exception | None = None):
        super().__init__(message)
        self.loaded = loaded
        self.why = why


class _Ids:
    """Remembers every id with where and with which content it was first seen.

    Keys are 128-bit hashes: a million of them take half the memory of the ids.
    """

    def __init__(self) -> None:
        self._position_by_key: dict[bytes, int] = {}
        self.numbers = array("Q")
        self.digests = array("Q")

    def add(self, prompt_id: str, digest: int, number: int) -> int | None:
        """Returns the position at which the id was seen before, if it was."""
        position = len(self.digests)
        self.numbers.append(number)
        self.digests.append(digest)
        key = hashlib.blake2b(prompt_id.encode(), digest_size=16).digest()
        first = self._position_by_key.setdefault(key, position)
        return None if first == position else first


class _Fields:
    """Notices fields that were named and that no record has: a slip that would show nowhere."""

    def __init__(self, names: FieldNames) -> None:
        self._unseen = names.given()
        self._first: Record | None = None

    def see(self, record: Record) -> None:
        if not isinstance(record.value, dict):
            return
        self._first = self._first or record
        if self._unseen:
            there = [name for name in self._unseen if record.value.get(name) is not None]
            for name in there:
                del self._unseen[name]

    def check(self, unit: str) -> None:
        if self._first is None or not self._unseen:
            return
        named = list(self._first.value)
        more = ", …" if len(named) > MAX_SHOWN_FIELDS else ""
        has = ", ".join(named[:MAX_SHOWN_FIELDS]) + more or "nothing"
        unseen = ", ".join(f"{option} {name}" for name, option in self._unseen.items())
        it = "it" if len(self._unseen) == 1 else "them"
        raise BadSourceError(
            f"{unseen}: no {unit} has {it}; {unit} {self._first.number} has {has}; nothing was sent"
        )


def survey(source: Source, names: FieldNames, advance: Advance = lambda _count: None) -> Survey:
    """Reads everything once; raises BadSourceError that lists what is wrong."""
    ids, repeats, domains = _Ids(), set(), Counter[str]()
    described, fields = Counter[str](), _Fields(names)
    problems, problem_count, embedding_length = [], 0, 0
    for record in source.records():
        advance(1)
        fields.see(record)
        try:
            if record.problem is not None:
                raise RecordError(record.problem)
            parsed = prompt_from_record(record.value, names)
            embedding_length = _agreed(embedding_length, len(parsed.prompt.embedding))
            first = ids.add(parsed.prompt.prompt_id, parsed.digest, record.number)
            if first is None:
                domains[parsed.prompt.domain] += 1
                described.update(word for word in DESCRIPTIONS if getattr(parsed.prompt, word))
            elif ids.digests[first] == parsed.digest:
                repeats.add(len(ids.digests) - 1)
            else:
                raise RecordError(
                    f"prompt_id={parsed.prompt.prompt_id!r} is also that of {source.unit} "
                    f"{ids.numbers[first]}, with other content"
                )
        except RecordError as error:
            problem_count += 1
            if problem_count <= MAX_SHOWN_PROBLEMS:
                problems.append(f"{source.unit} {record.number}: {error}")
    fields.check(source.unit)
    if len(domains) > limits.MAX_DOMAINS:
        problem_count += 1
        problems.append(f"domain: {len(domains)} different ones; at most {limits.MAX_DOMAINS}")
    if problem_count:
        raise BadSourceError(_report(problems, problem_count, source.unit))
    prompt_count = sum(domains.values())
    if not prompt_count:
        raise BadSourceError("the source is empty; nothing was sent")
    return Survey(
        record_count=len(ids.digests),
        prompt_count=prompt_count,
        collapsed_count=len(repeats),
        domains=dict(domains),
        described={word: described[word] for word in DESCRIPTIONS},
        digests=ids.digests,
        repeats=frozenset(repeats),
    )


def _agreed(before: int, length: int) -> int:
    """The length of the source's embeddings, of which one has this; 0 is none."""
    if before and length and before != length:
        raise RecordError(f"embedding has {length} numbers; those before have {before}")
    return before or length


def _report(problems: list[str], count: int, unit: str) -> str:
    title = f"{count} bad {unit}{'s' if count > 1 else ''}; nothing was sent"
    more = [f"and {count - len(problems)} more"] if count > len(problems) else []
    return "\n  ".join([title, *problems, *more])


def prompts(source: Source, names: FieldNames, surveyed: Survey) -> Iterator[Prompt]:
    """The prompts of a surveyed source, each once."""
    position = -1
    for position, record in enumerate(source.records()):
        parsed = None
        if record.problem is None and position < len(surveyed.digests):
            with contextlib.suppress(RecordError):
                parsed = prompt_from_record(record.value, names)
        if parsed is None or parsed.digest != surveyed.digests[position]:
            raise InvalidRequestError(f"{source.unit} {record.number} changed after it was checked")
        if position not in surveyed.repeats:
            yield parsed.prompt
    if position + 1 != len(surveyed.digests):
        raise InvalidRequestError("the source became shorter after it was checked")


def batches(items: Iterator[Prompt], max_count: int) -> Iterator[list[Prompt]]:
    """Cuts into calls of at most `max_count` prompts and about MAX_CALL_BYTES."""
    batch: list[Prompt] = []
    size = 0
    for prompt in items:
        prompt_size = prompt.ByteSize()
        if batch and (len(batch) == max_count or size + prompt_size > MAX_CALL_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(prompt)
        size += prompt_size
    if batch:
        yield batch


@dataclass(frozen=True)
class Sender:
    """Sends prompts to one run."""

    connection: Connection
    run_id: str
    batch_count: int
    patience_s: float
    advance: Advance

    def send(self, items: Iterator[Prompt]) -> Loaded:
        """Raises InterruptedLoadError when the server refuses, stays away, or on Ctrl-C."""
        loaded = Loaded()
        try:
            for batch in batches(items, self.batch_count):
                loaded = self._send_one(batch, loaded)
                self.advance(len(batch))
        except (CurriculumError, OSError) as error:
            raise InterruptedLoadError(str(error), loaded, why=error) from error
        except KeyboardInterrupt:
            raise InterruptedLoadError("interrupted", loaded) from None
        return loaded

    def _send_one(self, batch: list[Prompt], loaded: Loaded) -> Loaded:
        retries: list[CurriculumError] = []
        response = self.connection.call_patiently(
            self.connection.stub.AddPrompts,
            AddPromptsRequest(run_id=self.run_id, prompts=batch),
            patience_s=self.patience_s,
            on_retry=retries.append,
        )
        return replace(
            loaded,
            sent_count=loaded.sent_count + len(batch),
            added_count=loaded.added_count + response.added_count,
            existing_count=loaded.existing_count + response.existing_count,
            pool_count=response.prompt_count,
            retried_call_count=loaded.retried_call_count + bool(retries),
        )
