"""What is stored of embeddings that probers report: moved, damaged, and of the schema before."""

from __future__ import annotations

import json
import struct

import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2
from tests.server.doctor.looking import kinds, look
from tests.server.driving import RunDriver
from tests.server.embedded_runs import (
    believed,
    chunk_counts,
    document,
    key,
    telling,
    trained,
    unembedded_names,
    vectors,
)
from tests.server.test_transfer import damaged, export, import_to, request, reworded


def test_they_move_with_the_run_and_go_with_it(open_run, raw):
    run = open_run(6)
    run.embed(vectors(0, 1))
    run.embed(vectors(2, 3))
    assert chunk_counts(raw, run) == (2, 2)
    copy = import_to(run.stubs, f"{run.run_id}-copy", export(run))
    assert chunk_counts(raw, copy) == (2, 2)
    for chunk in ("embedding:0", "embedding:1"):
        assert raw.get(key(copy, chunk)) == raw.get(key(run, chunk))
        assert raw.ttl(key(copy, chunk)) == -1
    assert unembedded_names(copy) == unembedded_names(run) == ["p4", "p5"]
    assert look(run.stubs, copy.run_id) == []
    copy.delete()
    assert raw.exists(key(copy, "embedding:0"), key(copy, "embedding:1")) == 0


def head(*numbers):
    return struct.pack(f">{len(numbers)}I", *numbers)


SOUND = head(2, 0, 1) + b"\0\x3c" * 4
DAMAGE = {
    "cut": (SOUND[:-1], "embedding_chunk_broken"),
    "empty": (b"", "embedding_chunk_broken"),
    "of no numbers": (head(0, 0, 1), "embedding_chunk_broken"),
    "of too many numbers": (head(4097, 0) + bytes(8194), "embedding_chunk_broken"),
    "out of order": (head(2, 1, 0) + b"\0\x3c" * 4, "embedding_chunk_broken"),
    "named twice": (head(2, 1, 1) + b"\0\x3c" * 4, "embedding_chunk_broken"),
    "not finite": (head(2, 0, 1) + b"\0\x7c" * 4, "embedding_chunk_broken"),
    "beyond the pool": (head(2, 0, 4) + b"\0\x3c" * 4, "embeddings_beyond_pool"),
    "of one that has one": (head(2, 0, 2) + b"\0\x3c" * 4, "embeddings_repeated"),
    "of one that came with one": (head(2, 0, 3) + b"\0\x3c" * 4, "embeddings_repeated"),
    "of another length": (head(1, 0, 1) + b"\0\x3c" * 2, "embeddings_uneven"),
}


@pytest.fixture
def embedded(open_run):
    """p0 and p1 by the first chunk, p2 by the second, p3 from the start."""
    run = open_run(3)
    run.add([prompt_pb2.Prompt(prompt_id="p3", domain="d", embedding=[1.0, 2.0])])
    run.embed({"p0": [1.0, 1.0], "p1": [1.0, 1.0]})
    run.embed({"p2": [2.0, 1.0]})
    return run


def test_damaged_chunks_are_written_as_this_test_writes_them(embedded, raw):
    assert raw.get(key(embedded, "embedding:0")) == SOUND
    assert look(embedded.stubs, embedded.run_id) == []


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_refused_by_an_import_and_served_by_nobody(
    embedded, raw, refused, start_server, case
):
    run, (content, kind) = embedded, DAMAGE[case]
    sent = list(damaged(export(run), "embeddings/0/0", lambda _: content))
    raw.set(key(run, "embedding:0"), content)
    assert kinds(look(run.stubs, run.run_id)) == {kind}
    other = RunDriver(start_server().stubs, run.run_id)
    answer = refused(other.stubs.trainer.NextBatch, other.next_request())
    assert (answer.status, "embeddings of chunk" in answer.details) == ("DATA_LOSS", True)
    copy = f"{run.run_id}-copy"
    run.stubs.operator.ImportRun(request(copy, sent))
    answer = refused(run.stubs.operator.ImportRun, request(copy, commit=True))
    assert answer.status == "INVALID_ARGUMENT"
    assert "embedding" in answer.details


def test_a_missing_chunk_is_named(embedded, raw, refused, start_server):
    raw.delete(key(embedded, "embedding:1"))
    assert kinds(look(embedded.stubs, embedded.run_id)) == {"embedding_chunk_missing"}
    other = RunDriver(start_server().stubs, embedded.run_id)
    answer = refused(other.stubs.trainer.NextBatch, other.next_request())
    assert (answer.status, answer.details) == ("DATA_LOSS", "the embeddings of chunk 1 are missing")
    answer = refused(embedded.stubs.operator.ExportRun, op.ExportRunRequest(run_id=other.run_id))
    assert answer.status == "DATA_LOSS"


def test_a_chunk_that_nobody_counts_is_named_with_its_remedy(embedded, raw):
    raw.set(key(embedded, "embedding:2"), b"")
    (finding,) = look(embedded.stubs, embedded.run_id)
    assert finding.kind == "embedding_chunk_orphaned"
    assert finding.remedy == f"`UNLINK {key(embedded, 'embedding:2')}`"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embedding_chunk_count": 5}, "embedding_chunk_count=5: must be at most prompt_count=4"),
        ({"embedding_chunk_count": 3}, "'embeddings/2/0': is missing"),
        ({"used_embedding_chunk_count": 3}, "must be at most embedding_chunk_count=2"),
        ({"used_embedding_chunk_count": -1}, "must be a whole number in [0, "),
        ({"embedding_chunk_count": 1}, "used_embedding_chunk_count=2: must be at most"),
    ],
)
def test_a_document_that_counts_them_wrong_is_not_imported(embedded, refused, change, said):
    sent = list(damaged(export(embedded), "run.json", reworded(**change)))
    asked = request(f"{embedded.run_id}-copy", sent, commit=True)
    answer = refused(embedded.stubs.operator.ImportRun, asked)
    assert (answer.status, said in answer.details) == ("INVALID_ARGUMENT", True), answer


def test_a_run_of_the_schema_before_is_read_and_takes_them(open_run, raw, start_server):
    known = trained(open_run(300, domains=1, window_steps=2))
    before = document(raw, known)
    for name in ("embedding_chunk_count", "used_embedding_chunk_count"):
        assert before.pop(name) == 0
    raw.hset(key(known, "meta"), "doc", json.dumps(before | {"schema": 3}))
    old = known.through(start_server().stubs)
    assert believed(old) == believed(known)
    assert old.embed(telling(*range(300))) == (300, 0)
    assert document(raw, known)["schema"] == 4
    assert believed(old) == believed(known)
