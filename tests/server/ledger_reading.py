"""A run as the store holds it and as a server shows it, in the terms of the model."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import redis

from curriculum_server.store.document import Document
from curriculum_server.store.keys import RunKeys
from tests.server.driving import RunDriver
from tests.server.ledger_model import (
    CHANNEL,
    COLUMNS,
    OBJECTIVE,
    REFERENCE_COLUMNS,
    Counts,
    Model,
)

CLOSED = 1 << 31
SLOT_BYTES = 20
_WINDOW_KEY = re.compile(r"w:(\d+):(\w+(?::\w+)?)")


@dataclass(frozen=True)
class StoredBatch:
    """A batch's hash."""

    expire_s: int
    progress: tuple[int, ...]
    indices: tuple[int, ...]

    @property
    def open_indices(self) -> list[int]:
        return [i for i, p in zip(self.indices, self.progress, strict=True) if p < CLOSED]


class StoredRun:
    """Reads a run past the servers."""

    def __init__(self, client: redis.Redis, run_id: str) -> None:
        self._client = client
        self._keys = RunKeys(run_id)
        self.meta = client.hgetall(self._keys.meta)
        self.document = Document.from_json(self.meta[b"doc"])

    def counts(self, pool: list[str], last_window: int | None = None) -> Counts:
        """The sums over all windows, or over those up to one."""
        counts = Counts()
        windows = [
            w.window
            for w in self.document.windows
            if last_window is None or w.window <= last_window
        ]
        names = [
            (window, name)
            for window in windows
            for name in (*COLUMNS, *REFERENCE_COLUMNS, "served")
        ]
        blobs = self._client.mget([self._keys.column(*at) for at in names])
        for (_, name), blob in zip(names, blobs, strict=True):
            if name == "served":
                for index, step in struct.iter_unpack(">II", blob or b""):
                    newest = counts.served.get(pool[index], -1)
                    counts.served[pool[index]] = max(newest, step)
            else:
                cell = "i" if name.startswith("reward") else "I"
                for index, (amount,) in enumerate(struct.iter_unpack(f">{cell}", blob or b"")):
                    counts.columns[name][pool[index]] += amount
        counts.groups = sum(int(self.meta.get(b"groups:%d" % w, 0)) for w in windows)
        counts.mixed = sum(int(self.meta.get(b"mixed:%d" % w, 0)) for w in windows)
        return counts

    def batch(self, key: str | bytes) -> StoredBatch | None:
        slots, expire, progress = self._client.hmget(key, ["slots", "expire", "progress"])
        if slots is None:
            return None
        steps = tuple(n for (n,) in struct.iter_unpack(">I", progress))
        records = slots[len(slots) - SLOT_BYTES * len(steps) :]
        indices = tuple(row[0] for row in struct.iter_unpack(">IHBBfff", records))
        return StoredBatch(int(expire), steps, indices)

    def batch_of(self, timeline: int, batch_id: str) -> StoredBatch | None:
        return self.batch(self._keys.batch(timeline, batch_id))

    def leases(self, pool: list[str], now_s: int) -> dict[str, int]:
        """When each leased prompt's lease runs out; no prompt may be leased twice."""
        found: dict[str, int] = {}
        for key in self._client.zrange(self._keys.leases, 0, -1):
            batch = self.batch(key)
            if batch is None or batch.expire_s <= now_s:
                continue
            for index in batch.open_indices:
                assert pool[index] not in found, f"{pool[index]} is leased twice"
                found[pool[index]] = batch.expire_s
        return found

    def stray_columns(self) -> set[str]:
        """Windows' keys and fields that no window of the document has."""
        kept = {w.window for w in self.document.windows}
        found = self._client.scan_iter(match=f"{self._keys.prefix}w:*", count=10_000)
        names = [key.decode().removeprefix(self._keys.prefix) for key in found]
        strays = {name for name in names if int(_WINDOW_KEY.fullmatch(name)[1]) not in kept}
        fields = [name.decode() for name in self.meta if name.startswith((b"groups:", b"mixed:"))]
        return strays | {name for name in fields if int(name.split(":")[1]) not in kept}


def nonzero(counts: Counts) -> tuple[object, ...]:
    """Counts in a form in which equal ones compare equal."""
    columns = {
        name: {prompt_id: n for prompt_id, n in column.items() if n}
        for name, column in counts.columns.items()
    }
    return columns, counts.served, counts.groups, counts.mixed


def check_store(client: redis.Redis, run_id: str, model: Model, now_s: int) -> None:
    """The store holds what the model does, at present and as of every kept checkpoint."""
    stored = StoredRun(client, run_id)
    document = stored.document
    assert nonzero(stored.counts(model.pool)) == nonzero(model.counts)
    assert stored.leases(model.pool, now_s) == model.leases(now_s)
    assert stored.stray_columns() == set()
    assert (document.timeline, document.prompt_count) == (model.timeline, len(model.pool))
    assert int(stored.meta[b"policy_step"]) == model.policy_step
    marks = document.checkpoints
    assert [(m.name, m.policy_step) for m in marks] == [(m.name, m.step) for m in model.marks]
    for mark, expected in zip(marks, model.marks, strict=True):
        assert nonzero(stored.counts(model.pool, mark.window)) == nonzero(expected.counts)


def check_batches(client: redis.Redis, run_id: str, model: Model, now_s: int) -> None:
    """Every batch of the timeline has come as far as the model's, or is forgotten."""
    stored = StoredRun(client, run_id)
    for batch_id, batch in model.batches.items():
        found = stored.batch_of(model.timeline, batch_id)
        assert (found is None) == (now_s >= batch.gone_s)
        if found is not None:
            assert found.expire_s == batch.expire_s
            assert found.progress == tuple(
                s.is_closed * CLOSED
                | s.attempts << 16
                | s.low_bits(has_objective=model.has_objective)
                for s in batch.slots
            )


def check_view(server: RunDriver, model: Model, now_s: int) -> None:
    """A server shows what the model holds."""
    check_list(server, model, now_s)
    check_stats(server, model, now_s)
    run = server.get()
    assert (run.timeline, run.prompt_count) == (model.timeline, len(model.pool))
    assert run.policy_step == model.policy_step
    policy = (run.policy.policy_step, run.policy.uri) if run.HasField("policy") else None
    assert policy == model.policy
    config = run.config
    assert config.selection.group_size == model.group_size
    assert config.window_steps == model.window_steps
    assert config.lease_ttl.seconds == model.lease_ttl_s
    assert [channel.name for channel in config.channels] == [CHANNEL]
    assert dict(config.objective) == (OBJECTIVE if model.has_objective else {})
    assert [(m.name, m.policy_step) for m in run.checkpoints] == [
        (m.name, m.step) for m in model.marks
    ]


def check_list(server: RunDriver, model: Model, now_s: int) -> None:
    columns, leases = model.counts.columns, model.leases(now_s)
    states = server.list().prompts
    assert [state.prompt_id for state in states] == model.pool
    for state in states:
        prompt_id = state.prompt_id
        counts = (state.attempt_count, state.pass_count)
        assert counts == (columns["attempts"][prompt_id], columns["passes"][prompt_id])
        is_served = state.HasField("last_served_step")
        served = state.last_served_step if is_served else None
        assert served == model.counts.served.get(prompt_id)
        is_leased = state.HasField("lease_expire_time")
        expire_s = state.lease_expire_time.seconds if is_leased else None
        assert expire_s == leases.get(prompt_id)


def check_stats(server: RunDriver, model: Model, now_s: int) -> None:
    stats, counts = server.stats(), model.counts
    attempts, passes = (sum(counts.columns[name].values()) for name in ("attempts", "passes"))
    sums = tuple(
        sum(column)
        for column in zip(
            *(
                (w.attempt_count, w.pass_count, w.group_count, w.mixed_group_count)
                for w in stats.windows
            ),
            strict=True,
        )
    )
    totals = (attempts, passes, counts.groups, counts.mixed)
    assert sums == totals
    shown = (stats.attempt_count, stats.pass_count, stats.group_count, stats.mixed_group_count)
    assert shown == totals
    assert stats.leased_prompt_count == len(model.leases(now_s))
    assert stats.policy_step == model.policy_step
