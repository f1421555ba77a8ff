"""Whether a run's counters, events and leases fit each other."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

import numpy as np

from curriculum_api.limits import MAX_POLICY_STEP
from curriculum_server.engine.check_keys import RESTORE, Shape
from curriculum_server.engine.findings import Findings, shown
from curriculum_server.store.batches import CLOSED, OpenBatch, decode_records
from curriculum_server.store.connection import Redis
from curriculum_server.store.document import Document
from curriculum_server.store.keys import RunKeys
from curriculum_server.store.load import load_record
from curriculum_server.store.looking import RawRun, read_batches

MAX_GROUPS = 10**15
"""Of a window, so that those of all windows together fit into a message."""

_GROUPS = re.compile(rb"(groups|mixed):(\d+)")
_WHOLE = re.compile(rb"[0-9]{1,18}")


def check_meta(keys: RunKeys, shape: Shape, findings: Findings) -> None:
    """Look at the fields of the meta hash beside the document."""
    raw, meta = shape.raw, shown(keys.meta)
    numbers = {}
    for name in ("seq", "claims", "policy_step"):
        value = raw.meta.get(name.encode(), b"")
        most = MAX_POLICY_STEP if name == "policy_step" else 10**18
        if not _WHOLE.fullmatch(value) or int(value) > most:
            problem = f"{meta} {name}={value[:40]!r}: must be a whole number up to {most}"
            findings.error("meta_broken", problem, RESTORE)
        else:
            numbers[name] = int(value)
    if numbers.get("seq", raw.event_count) < raw.event_count:
        findings.error(
            "events_ahead",
            f"{meta} seq={numbers['seq']}: must be at least {raw.event_count}, the events in "
            f"{shown(keys.events)}",
            f"`HSET {meta} seq {raw.event_count}`, and restart the servers",
        )
    if shape.document is not None:
        _check_groups(meta, raw, shape.document, findings)


def _check_groups(meta: str, raw: RawRun, document: Document, findings: Findings) -> None:
    windows = {str(window.window) for window in document.windows}
    counts: dict[int, dict[bytes, int]] = {}
    for name, value in sorted(raw.meta.items()):
        match = _GROUPS.fullmatch(name)
        if match is None:
            continue
        is_count = _WHOLE.fullmatch(value) and int(value) <= MAX_GROUPS
        if match[2].decode() not in windows or not is_count:
            findings.error(
                "group_count_orphaned",
                f"{meta} {shown(name)}={shown(value[:40])}: is of a window that the run does not "
                "have, or no number",
                f"`HDEL {meta} {shown(name)}`",
            )
        else:
            counts.setdefault(int(match[2]), {})[match[1]] = int(value)
    for window, found in counts.items():
        groups, mixed = found.get(b"groups", 0), found.get(b"mixed", 0)
        if mixed > groups:
            findings.error(
                "mixed_exceed_groups",
                f"{meta} mixed:{window}={mixed}: must be at most groups:{window}={groups}",
                f"`HSET {meta} groups:{window} {mixed}`, and restart the servers",
            )


async def check_leases(
    redis: Redis, keys: RunKeys, raw: RawRun, document: Document, findings: Findings
) -> None:
    """Look at the leases that hold."""
    names = [name for name, expire_s in raw.leases if expire_s > raw.now_s]
    batches = await read_batches(redis, names)
    open_batches = []
    for name, batch in zip(names, batches, strict=True):
        if batch is None:
            findings.warning(
                "lease_orphaned",
                f"{shown(keys.leases)} names {shown(name)}, which is gone",
                f"`ZREM {shown(keys.leases)} {shown(name)}`",
            )
        elif batch.record.expire_s > raw.now_s:
            open_batches.append((name, batch))
    _check_overlap(keys, open_batches, document, findings)


def _check_overlap(
    keys: RunKeys,
    batches: Sequence[tuple[bytes, OpenBatch]],
    document: Document,
    findings: Findings,
) -> None:
    holders: dict[int, bytes] = {}
    for name, batch in batches:
        is_open_B = batch.progress_B < CLOSED
        for index in np.unique(batch.record.slots["index"][is_open_B]).tolist():
            if index >= document.prompt_count:
                problem = f"{shown(name)} leases prompt {index} of {document.prompt_count}"
                findings.error("lease_beyond_pool", problem, _call_back(keys, name))
            elif index in holders:
                findings.error(
                    "prompt_leased_twice",
                    f"{shown(name)} and {shown(holders[index])} both lease prompt {index}",
                    "both may be reported, for both were sampled; to call one back, "
                    + _call_back(keys, name),
                )
            holders[index] = name


def _call_back(keys: RunKeys, batch: bytes) -> str:
    leases, name = shown(keys.leases), shown(batch)
    return f"`ZREM {leases} {name}` and `UNLINK {name}`, and restart the servers"


async def check_open_batches(
    redis: Redis, keys: RunKeys, document: Document, findings: Findings
) -> None:
    """Look at the batches that were open at checkpoints."""
    for number in sorted(document.kept_batches):
        key = keys.open_batches(number)
        blob = await load_record(redis, key)
        problem = "is missing" if blob is None else _problem_of(blob, document)
        if problem:
            findings.error(
                "open_batches_broken",
                f"{shown(key)}, batches that were open at a checkpoint, {problem}",
                f"{RESTORE}; or forget them, so that a trainer that resumes there may get others: "
                f"`SET {shown(key)} ''`",
            )


def _problem_of(blob: bytes, document: Document) -> str:
    try:
        records = decode_records(blob)
    except (ValueError, struct.error) as error:
        return f"cannot be read: {error}"
    for name, record in records.items():
        if (record.slots["index"] >= document.prompt_count).any():
            return f"have prompts behind the pool's {document.prompt_count} in {name!r}"
    return ""
