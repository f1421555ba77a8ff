"""What the doctor sees: a sound store has no finding, each kind of damage is named, and the
commands that it gives mend it."""

from __future__ import annotations

import json
import struct
import threading
import time
from contextlib import suppress

import grpc
import pytest

from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_server.engine import check_ledger, doctor
from curriculum_server.engine.findings import SHOWN_PER_KIND, shown
from tests.server.doctor.looking import ERROR, WARNING, kinds, look, mend

SLOT_BYTES = 20


@pytest.fixture
def run(open_run, stubs):
    """A run with everything that a run can have."""
    run = open_run(
        20,
        window_steps=2,
        selection={"group_size": 4},
        channels=[run_pb2.Channel(name="entropy", min_value=0, max_value=1)],
        objective={"reward": 1.0},
    )
    for step in range(4):
        run.play(step, count=4, passes=1)
    run.add([prompt_pb2.Prompt(prompt_id="q", domain="new", text="?")])
    batch = run.next("open", count=3, step=4)
    run.report(
        batch,
        {0: [0.5, 1.0]},
        token_counts=[3, 4],
        channels={"entropy": batch_pb2.ChannelValues(values=[0.5, 0.25])},
    )
    run.checkpoint("a", 4)
    run.play(5)
    yield run
    with suppress(grpc.RpcError):
        run.delete()


class Keys:
    """A run's keys, as a damage refers to them."""

    def __init__(self, store, run):
        self.store = store
        self.prefix = f"cur:{{{run.run_id}}}:"
        self.meta = self("meta")

    def __call__(self, name):
        return f"{self.prefix}{name}"

    def reword(self, **changes):
        """Change fields of the document."""
        document = json.loads(self.store.hget(self.meta, "doc")) | changes
        self.store.hset(self.meta, "doc", json.dumps(document))

    def reconfigure(self, **changes):
        self.reword(config=json.loads(self.store.hget(self.meta, "doc"))["config"] | changes)

    def batch(self):
        """The batch that is out."""
        return self("batch:0:open")


def lease_again(store, keys):
    content = store.hgetall(keys.batch())
    store.hset(keys("batch:0:twin"), mapping=content)
    store.expire(keys("batch:0:twin"), 9999)
    store.zadd(keys("leases"), {keys("batch:0:twin"): time.time() + 999})


def lease_beyond(store, keys):
    slots = bytearray(store.hget(keys.batch(), "slots"))
    slots[-SLOT_BYTES : -SLOT_BYTES + 4] = struct.pack(">I", 21)
    store.hset(keys.batch(), "slots", bytes(slots))


def repeat_chunk(store, keys):
    last = {name: store.get(keys(f"{name}:1")) for name in ("catalog", "payload")}
    keys.reword(chunk_count=3, prompt_count=22)
    for name, content in last.items():
        store.set(keys(f"{name}:2"), content)


MENDED = {
    "run_not_listed": lambda s, k: s.zrem("cur:runs", k.prefix[5:-2]),
    "passes_exceed_attempts": lambda s, k: s.setrange(k("w:1:passes"), 8, b"\0\0\1\0"),
    "objective_exceeds_attempts": lambda s, k: s.setrange(k("w:1:objective"), 8, b"\0\x0f\0\0"),
    "objective_exceeds_attempts with its square": lambda s, k: s.setrange(
        k("w:1:objective_sq"), 8, b"\0\x0f\0\0"
    ),
    "column_broken": lambda s, k: s.append(k("w:0:passes"), b"x"),
    "column_too_long": lambda s, k: s.setrange(k("w:0:tokens"), 21 * 4, b"\0\0\0\1"),
    "column_orphaned": lambda s, k: s.set(k("w:77:attempts"), b"\0\0\0\1"),
    "column_orphaned of a channel": lambda s, k: s.set(k("w:1:ch:other"), b"\0\0\0\1"),
    "served_broken": lambda s, k: s.append(k("w:1:served"), b"x"),
    "served_beyond_pool": lambda s, k: s.append(k("w:1:served"), struct.pack(">II", 21, 1)),
    "chunk_orphaned": lambda s, k: s.set(k("catalog:2"), b"{}"),
    "open_batches_orphaned": lambda s, k: s.set(k("open:5"), b""),
    "open_batches_broken": lambda s, k: s.delete(*s.keys(k("open:*"))),
    "open_batches_broken in between": lambda s, k: s.set(s.keys(k("open:*"))[0], b"junk-junk"),
    "group_count_orphaned": lambda s, k: s.hset(k.meta, "groups:77", 3),
    "mixed_exceed_groups": lambda s, k: s.hset(k.meta, "mixed:1", 999),
    "events_ahead": lambda s, k: s.hset(k.meta, "seq", 1),
    "lease_orphaned": lambda s, k: s.zadd(k("leases"), {k("batch:0:gone"): time.time() + 99}),
    "lease_beyond_pool": lease_beyond,
    "prompt_leased_twice": lease_again,
    "key_unknown": lambda s, k: s.set(k('novelty:a b"c`d\n'), b"1"),
    "key_with_ttl": lambda s, k: s.expire(k("w:1:attempts"), 999),
    "key_without_ttl": lambda s, k: s.persist(k.batch()),
}
"""By kind, what brings it about; the remedy is a command."""


@pytest.mark.parametrize("case", MENDED)
def test_damage_is_named_and_the_commands_given_mend_it(run, stubs, store, case):
    keys = Keys(store, run)
    assert look(stubs, run.run_id) == []
    MENDED[case](store, keys)
    found = look(stubs, run.run_id)
    assert kinds(found) == {case.split()[0]}
    assert all(finding.run_id == run.run_id for finding in found)
    assert {finding.severity for finding in found} == {
        WARNING if case == "lease_orphaned" else ERROR
    }
    assert kinds(look(stubs)) == kinds(found)
    mend(store, found)
    assert look(stubs, run.run_id) == []


RESTORED = {
    "document_broken": lambda s, k: s.hset(k.meta, "doc", "{"),
    "document_broken in its windows": lambda s, k: k.reword(windows=[]),
    "document_broken in its configuration": lambda s, k: k.reword(config={"seed": "x"}),
    "document_broken in a number": lambda s, k: k.reconfigure(window_steps=1.5),
    "document_broken in a range": lambda s, k: k.reconfigure(lease_ttl_s=0),
    "document_broken in its sampling": lambda s, k: k.reconfigure(sampling={"top_p": 2}),
    "document_broken in its checkpoints": lambda s, k: k.reword(next_window=1),
    "document_broken and missing": lambda s, k: s.hdel(k.meta, "doc"),
    "schema_unknown": lambda s, k: k.reword(schema=99),
    "meta_broken": lambda s, k: s.hset(k.meta, "seq", "many"),
    "meta_broken in its layout": lambda s, k: s.hset(k.meta, "layout", "x"),
    "chunk_missing": lambda s, k: s.delete(k("catalog:1")),
    "chunk_missing its prompts": lambda s, k: s.delete(k("payload:0")),
    "chunk_miscounted": lambda s, k: s.set(k("payload:1"), s.get(k("payload:1")) * 2),
    "catalog_broken": lambda s, k: s.set(k("catalog:0"), b"[]"),
    "payload_broken": lambda s, k: s.set(k("payload:0"), s.get(k("payload:0"))[:-2]),
    "payload_broken by another prompt": lambda s, k: s.set(
        k("catalog:1"), s.get(k("catalog:1")).replace(b'"q"', b'"z"')
    ),
    "pool_miscounted": lambda s, k: k.reword(prompt_count=22),
    "prompt_repeated": repeat_chunk,
}
"""By kind, what brings it about; only a backup or an export mends it."""


@pytest.mark.parametrize("case", RESTORED)
def test_damage_that_no_command_mends_is_named_and_an_export_brings_the_run_back(
    run, stubs, store, case
):
    name, keys = f"{run.run_id}-restored", Keys(store, run)
    parts, token = [], ""
    while not parts or token:
        page = stubs.operator.ExportRun(op.ExportRunRequest(run_id=run.run_id, page_token=token))
        parts += page.parts
        token = page.next_page_token
    RESTORED[case](store, keys)
    found = look(stubs, run.run_id)
    assert kinds(found) == {case.split()[0]}
    assert {finding.severity for finding in found} == {ERROR}
    assert all(finding.remedy for finding in found)
    stubs.operator.ImportRun(
        op.ImportRunRequest(run_id=name, request_id="i", parts=parts, commit=True)
    )
    assert look(stubs, name) == []
    stubs.operator.DeleteRun(op.DeleteRunRequest(run_id=name))
    assert kinds(look(stubs)) == kinds(found)


def test_a_key_of_another_type_is_named(run, stubs, store):
    keys = Keys(store, run)
    store.delete(keys("w:1:attempts"))
    store.lpush(keys("w:1:attempts"), "x")
    found = look(stubs, run.run_id)
    assert kinds(found) == {"key_of_wrong_type", "unreadable"}
    assert "is a list: must be a string" in found[0].problem + found[1].problem
    store.delete(keys.meta)
    store.set(keys.meta, "x")
    assert "key_of_wrong_type" in kinds(look(stubs, run.run_id))
    store.delete(keys.meta)


def test_an_objectives_column_in_a_run_without_one_is_an_orphan(open_run, stubs, store):
    run = open_run(4)
    run.play(0)
    store.set(Keys(store, run)("w:0:objective_sq"), b"\0\0\0\1")
    (finding,) = found = look(stubs, run.run_id)
    assert finding.kind == "column_orphaned"
    assert "is of an objective, which the run does not have" in finding.problem
    mend(store, found)
    assert look(stubs, run.run_id) == []
    run.delete()


def test_a_saturated_cell_is_a_warning(run, stubs, store):
    store.setrange(Keys(store, run)("w:1:tokens"), 8, b"\xff" * 4)
    (finding,) = look(stubs, run.run_id)
    assert (finding.kind, finding.severity) == ("column_saturated", WARNING)
    assert "cell 2 is 4294967295" in finding.problem


def test_an_interrupted_deletion_is_named_and_repeating_it_ends_it(run, stubs, store):
    store.hdel(Keys(store, run).meta, "layout")
    store.zrem("cur:runs", run.run_id)
    (finding,) = look(stubs, run.run_id)
    assert (finding.kind, finding.severity) == ("run_incomplete", ERROR)
    run.delete()
    assert look(stubs) == []


def test_an_unfinished_import_is_a_warning_and_a_deletion_ends_it(stubs):
    part = run_pb2.RunPart(name="prompts/0/catalog/0", content=b"{}")
    stubs.operator.ImportRun(op.ImportRunRequest(run_id="half", request_id="i", parts=[part]))
    (finding,) = look(stubs)
    assert (finding.kind, finding.severity) == ("import_unfinished", WARNING)
    assert finding.run_id == "half"
    stubs.operator.DeleteRun(op.DeleteRunRequest(run_id="half"))
    assert look(stubs) == []


def test_keys_without_a_run_are_named(run, stubs, store):
    keys = Keys(store, run)
    store.delete(keys.meta)
    found = look(stubs, run.run_id)
    assert kinds(found) == {"key_orphaned", "run_missing"}
    assert len(found) == SHOWN_PER_KIND + 2
    with suppress(grpc.RpcError):  # once no trace is left
        while found := look(stubs, run.run_id):
            mend(store, [finding for finding in found if "`" in finding.remedy])
    assert not [key for key in store.scan_iter(keys("*")) if store.ttl(key) == -1]
    assert look(stubs) == []


def test_a_run_that_only_the_index_names_is_named(stubs, store):
    store.zadd("cur:runs", {"never": 0})
    (finding,) = look(stubs)
    assert (finding.kind, finding.run_id) == ("run_missing", "never")
    mend(store, [finding])
    assert look(stubs) == []


def test_a_run_that_is_not_there_is_not_found(stubs, refused):
    request = op.CheckStoreRequest(run_id="never-made")
    assert refused(stubs.operator.CheckStore, request).status == "NOT_FOUND"


@pytest.mark.parametrize("request_fields", [{"page_token": "eHh4"}, {"run_id": "a b"}])
def test_a_request_that_is_none_is_refused(stubs, refused, request_fields):
    answer = refused(stubs.operator.CheckStore, op.CheckStoreRequest(**request_fields))
    assert answer.status == "INVALID_ARGUMENT"


def test_looking_changes_nothing(run, stubs, store):
    def content():
        return {key: store.dump(key) for key in store.scan_iter(count=10_000)}

    before = content()
    look(stubs)
    look(stubs, run.run_id)
    assert content() == before


def test_pages_of_any_size_find_the_same(run, open_run, stubs, store, monkeypatch):
    others = [open_run(2) for _ in range(3)]
    keys = Keys(store, run)
    for case in ("passes_exceed_attempts", "served_beyond_pool", "group_count_orphaned"):
        MENDED[case](store, keys)
    whole = look(stubs)
    monkeypatch.setattr(doctor, "PAGE_S", 0.0)
    monkeypatch.setattr(doctor, "RUNS_PER_PAGE", 2)
    monkeypatch.setattr(check_ledger, "CELLS_PER_LOOK", 4)
    pages = []
    token = ""
    while not pages or token:
        page = stubs.operator.CheckStore(op.CheckStoreRequest(page_token=token))
        pages.append(page)
        token = page.next_page_token
    found = [finding for page in pages for finding in page.findings]
    assert sorted(f.problem for f in found) == sorted(f.problem for f in whole)
    assert len(pages) > 6
    looked_at = {run_id for page in pages for run_id in page.run_ids}
    assert looked_at == {run.run_id, *(other.run_id for other in others)}
    for other in others:
        other.delete()


def test_a_run_in_use_is_sound_at_any_moment(run, stubs):
    stop, failures = threading.Event(), []

    def use():
        try:
            for step in range(6, 400):
                if stop.is_set():
                    return
                run.play(step)
                if step % 7 == 0:
                    run.checkpoint(f"c{step}", step)
                if step % 20 == 0:
                    run.rollback(f"c{step // 7 * 7}")
                if step % 9 == 0:
                    run.add([prompt_pb2.Prompt(prompt_id=f"new-{step}", domain="new")])
        except Exception as error:
            failures.append(error)

    trainer = threading.Thread(target=use)
    trainer.start()
    try:
        for _ in range(15):
            assert look(stubs) == []
    finally:
        stop.set()
        trainer.join()
    assert not failures


def test_a_kind_that_occurs_often_is_shown_some_times(run, stubs, store):
    for number in range(SHOWN_PER_KIND + 10):
        store.set(Keys(store, run)(f"w:{100 + number}:attempts"), b"")
        store.append(Keys(store, run)(f"w:{100 + number}:attempts"), b"\0\0\0\1")
    found = look(stubs, run.run_id)
    assert len(found) == SHOWN_PER_KIND + 1
    assert "there are more of the kind column_orphaned" in found[-1].problem


def test_keys_are_shown_as_a_command_line_takes_them():
    assert shown("cur:{a}:w:0:ch:x") == "cur:{a}:w:0:ch:x"
    assert shown(b'a "\xff`\\') == r'"a \x22\xff\x60\x5c"'
