"""Checkpoints, rollback, published policies and changes of configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from curriculum_api.errors import AlreadyExistsError, NotFoundError, StateError
from curriculum_server.engine.run import LAYOUT_TRIES, Run
from curriculum_server.store.batches import encode_records
from curriculum_server.store.commit import Change, commit
from curriculum_server.store.document import CheckpointMark, Document
from curriculum_server.store.load import load_leased, load_record


async def checkpoint(run: Run, name: str, step: int, timeline: int | None) -> Document:
    """Close the newest window at `step` and keep the point, with the batches that are open now: a
    trainer that fetches ahead will ask for them again. Repeating a name and step is harmless.

    Raises:
        AlreadyExistsError: the name is taken by another step.
        StateError: there is a checkpoint at a later step.
    """
    opened = b""

    async def read_open() -> None:
        nonlocal opened
        opened = encode_records(await load_leased(run.redis, run.keys))

    async with run.lock:

        def mark(document: Document) -> tuple[Document, Change] | None:
            run.check_timeline(timeline)
            if _is_marked(document, name, step):
                return None
            run.check_step(step)
            number = run.mirror.layout if opened else 0
            marked = document.with_checkpoint(name, step, number)
            sets = {run.keys.open_batches(number): opened} if opened else {}
            claims, deletes = run.mirror.claims, _unkept(run, document, marked)
            return marked, Change(sets=sets, deletes=deletes, claims=claims)

        return await run.change_layout(mark, read_open)


def _is_marked(document: Document, name: str, step: int) -> bool:
    """Whether there is this checkpoint; refuses one that cannot be made."""
    for known in document.checkpoints:
        if known.name == name and known.policy_step != step:
            raise AlreadyExistsError(
                f"checkpoint.name={name!r}: is the checkpoint at step {known.policy_step}"
            )
        if known.name == name:
            return True
    if document.checkpoints and step < document.checkpoints[-1].policy_step:
        newest = document.checkpoints[-1]
        raise StateError(
            f"checkpoint.policy_step={step}: must be at least {newest.policy_step}, the step of "
            f"checkpoint {newest.name!r}"
        )
    return False


async def delete_checkpoint(run: Run, name: str) -> Document:
    """Let a checkpoint go; one that is not kept changes nothing."""

    def drop(document: Document) -> tuple[Document, Change] | None:
        rest = document.without_checkpoint(name)
        if rest == document:
            return None
        return rest, Change(deletes=_unkept(run, document, rest))

    async with run.lock:
        return await run.change_layout(drop)


async def rollback(run: Run, request_id: str, checkpoint_name: str) -> tuple[int, int]:
    """Return to a checkpoint: (new timeline, its policy step). A repeat changes nothing.

    Raises:
        NotFoundError: no checkpoint of that name is kept.
        AlreadyExistsError: the request_id was used for another checkpoint.
    """
    record_key = run.keys.rollback(request_id)
    async with run.lock:
        for _ in range(LAYOUT_TRIES):
            await run.sync()
            # Read behind the layout that is committed on: a rollback of that name by another server
            # either is found here or makes the commit miss.
            known = await load_record(run.redis, record_key)
            if known is not None:
                return _repeated(request_id, checkpoint_name, known)
            mark = _find(run.mirror.document, checkpoint_name)
            rolled = run.mirror.document.rolled_back_to(mark)
            record = json.dumps([checkpoint_name, rolled.timeline, mark.policy_step])
            change = _dropping(run, rolled, mark, {record_key: record.encode()})
            if await commit(run.redis, run.keys, run.mirror.layout, rolled, change):
                return rolled.timeline, mark.policy_step
    raise run.overtaken()


async def publish_policy(run: Run, step: int, uri: str) -> None:
    """Note where the newest weights are; an older step than the known one changes nothing."""

    def publish(document: Document) -> tuple[Document, Change] | None:
        run.check_step(step)
        known = -1 if document.policy_step is None else document.policy_step
        if step < known or (step, uri) == (known, document.policy_uri):
            return None
        return replace(document, policy_step=step, policy_uri=uri), Change()

    async with run.lock:
        await run.change_layout(publish)


async def update_config(run: Run, changes: Mapping[str, Any]) -> None:
    """Replace the given keys of the run's configuration."""

    def update(document: Document) -> tuple[Document, Change] | None:
        config = run.mirror.config.updated(changes)
        if config == run.mirror.config:
            return None
        return replace(document, config=config.to_mapping()), Change()

    async with run.lock:
        await run.change_layout(update)


def _unkept(run: Run, before: Document, after: Document) -> list[str]:
    """Keys of open batches that no checkpoint refers to any more."""
    return [run.keys.open_batches(number) for number in before.kept_batches - after.kept_batches]


def _dropping(
    run: Run, rolled: Document, mark: CheckpointMark, records: Mapping[str, bytes]
) -> Change:
    """Drops the leases and all that windows and checkpoints after the mark hold."""
    dropped = [w.window for w in run.mirror.document.windows if w.window > mark.window]
    names = run.mirror.document.column_names
    fields = {f"{name}:{w}": "" for w in dropped for name in ("groups", "mixed")}
    return Change(
        reload=True,
        records=records,
        deletes=[
            run.keys.leases,
            *(run.keys.column(w, n) for w in dropped for n in names),
            *_unkept(run, run.mirror.document, rolled),
        ],
        meta_fields={"policy_step": str(mark.policy_step), **fields},
    )


def _find(document: Document, name: str) -> CheckpointMark:
    for mark in document.checkpoints:
        if mark.name == name:
            return mark
    kept = ", ".join(repr(mark.name) for mark in document.checkpoints) or "none"
    raise NotFoundError(f"checkpoint_name={name!r}: is not kept; kept are {kept}")


def _repeated(request_id: str, checkpoint_name: str, known: bytes) -> tuple[int, int]:
    name, timeline, step = json.loads(known)
    if name != checkpoint_name:
        raise AlreadyExistsError(
            f"request_id={request_id!r}: was used to roll back to checkpoint {name!r}"
        )
    return timeline, step
