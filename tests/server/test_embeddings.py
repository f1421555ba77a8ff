"""Embeddings: kept beside the pool, compared, moved and checked, and sent to nobody."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2
from curriculum_server.engine import growing
from tests.server.doctor.looking import kinds, look
from tests.server.driving import RunDriver
from tests.server.test_transfer import export, import_to, request


def prompt(prompt_id="a", embedding=(), **fields):
    return prompt_pb2.Prompt(
        **{"prompt_id": prompt_id, "domain": "math", "text": "?", "embedding": embedding} | fields
    )


def catalog_key(run, chunk):
    return f"cur:{{{run.run_id}}}:catalog:{chunk}"


def stored(raw, run, chunk=0):
    return json.loads(raw.get(catalog_key(run, chunk)))


def test_an_embedding_is_neither_served_nor_shown(open_run):
    run = open_run(0)
    run.add([prompt("a", [0.25, -1.0], tags=["t"], features={"f": 1.0})])
    plain = prompt("a", tags=["t"], features={"f": 1.0})
    assert run.prompt("a").prompt == plain
    (served,) = run.next(count=1).prompts
    assert served.prompt == plain
    run = open_run(0)
    run.add([prompt("a", [0.25, -1.0], tags=["t"], features={"f": 1.0})])
    (probed,) = run.probes(count=1).batch.prompts
    assert probed.prompt == plain


def test_a_pool_without_embeddings_is_stored_without(open_run, raw):
    run = open_run(3)
    assert set(stored(raw, run)) == {"ids", "domains"}


def test_only_prompts_with_embeddings_cost_room(open_run, raw):
    run = open_run(0)
    run.add([prompt("a"), prompt("b", [0.5, -2.0]), prompt("c"), prompt("d", [1.0, 65504.0])])
    column = stored(raw, run)["embeddings"]
    assert column["rows"] == [1, 3]
    values = np.frombuffer(base64.b64decode(column["values"]), "<f2")
    assert values.tolist() == [0.5, -2.0, 1.0, 65504.0]


def test_an_addition_repeated_with_its_embeddings_adds_nothing(open_run, start_server):
    run = open_run(0)
    given = [prompt("a", [0.1, 0.2]), prompt("b"), prompt("c", [1e-9, 3.14159])]
    run.add(given)
    for driver in (run, run.through(start_server().stubs)):
        again = driver.add(given)
        assert (again.added_count, again.existing_count, again.prompt_count) == (0, 3, 3)


@pytest.mark.parametrize("other", [[0.1, 0.21], [0.1], [0.1, 0.2, 0.0], []])
def test_an_id_with_another_embedding_is_refused(open_run, refused, other):
    run = open_run(0)
    run.add([prompt("a", [0.1, 0.2])])
    addition = op.AddPromptsRequest(run_id=run.run_id, prompts=[prompt("b"), prompt("a", other)])
    answer = refused(run.stubs.operator.AddPrompts, addition)
    assert answer.status == "ALREADY_EXISTS"
    assert answer.details == "prompts.prompt_id='a': is in the pool with other content"
    assert run.get().prompt_count == 1


def test_a_prompt_that_came_without_an_embedding_takes_none_later(open_run, refused):
    run = open_run(0)
    run.add([prompt("a")])
    addition = op.AddPromptsRequest(run_id=run.run_id, prompts=[prompt("a", [1.0])])
    assert refused(run.stubs.operator.AddPrompts, addition).status == "ALREADY_EXISTS"


def test_embeddings_of_a_run_have_one_length(open_run, refused):
    run = open_run(0)
    said = "prompts.embedding: 3 numbers of prompt_id='b': must be 2, as the run's first embedding"
    addition = op.AddPromptsRequest(
        run_id=run.run_id, prompts=[prompt("n"), prompt("a", [1.0, 2.0]), prompt("b", [1.0] * 3)]
    )
    answer = refused(run.stubs.operator.AddPrompts, addition)
    assert (answer.status, said in answer.details) == ("INVALID_ARGUMENT", True)
    assert run.get().prompt_count == 0
    run.add([prompt("a", [1.0, 2.0])])
    addition = op.AddPromptsRequest(run_id=run.run_id, prompts=[prompt("b", [1.0] * 3)])
    answer = refused(run.stubs.operator.AddPrompts, addition)
    assert (answer.status, said in answer.details) == ("INVALID_ARGUMENT", True)
    run.add([prompt("b", [3.0, 4.0]), prompt("c")])
    assert run.get().prompt_count == 3


@pytest.mark.parametrize(
    ("embedding", "said"),
    [
        ([0.0] * 4097, "len(prompts[0].embedding)=4097: must be in [0, 4096]"),
        ([1.0, math.nan], "prompts[0].embedding[1]=nan: must be in [-65504.0, 65504.0]"),
        ([-math.inf], "prompts[0].embedding[0]=-inf: must be in [-65504.0, 65504.0]"),
        ([0.0, 65536.0], "prompts[0].embedding[1]=65536.0: must be in [-65504.0, 65504.0]"),
    ],
)
def test_an_embedding_that_cannot_be_kept_is_refused(open_run, refused, embedding, said):
    run = open_run(0)
    addition = op.AddPromptsRequest(run_id=run.run_id, prompts=[prompt("a", embedding)])
    answer = refused(run.stubs.operator.AddPrompts, addition)
    assert (answer.status, answer.details) == ("INVALID_ARGUMENT", said)


def test_the_longest_embeddings_are_taken(open_run):
    run = open_run(0)
    given = [prompt(f"p{n}", np.linspace(-n, n, 4096)) for n in range(64)]
    run.add(given)
    assert run.add(given).existing_count == 64
    assert len(run.next(count=64).prompts) == 64


@pytest.fixture
def small_chunks(monkeypatch):
    """A chunk ends behind two embeddings of two numbers."""
    monkeypatch.setattr(growing, "CHUNK_EMBEDDING_BYTES", 8)


def test_long_embeddings_are_kept_in_chunks_so_that_others_have_their_turns(
    open_run, raw, small_chunks, start_server
):
    run = open_run(0)
    given = [prompt(f"p{n}", [n, -n] if n % 3 else ()) for n in range(10)]
    added = run.add(given)
    assert (added.added_count, added.prompt_count) == (10, 10)
    chunks = [stored(raw, run, chunk)["ids"] for chunk in range(4)]
    assert chunks == [["p0", "p1", "p2"], ["p3", "p4", "p5"], ["p6", "p7", "p8"], ["p9"]]
    assert raw.get(catalog_key(run, 4)) is None
    more = run.add([*given, prompt("p10", [10, -10]), prompt("p11", [11, -11]), prompt("p12")])
    assert (more.added_count, more.existing_count, more.prompt_count) == (3, 10, 13)
    assert look(run.stubs, run.run_id) == []
    for driver in (run, run.through(start_server().stubs)):
        assert [state.prompt_id for state in driver.list().prompts] == [f"p{n}" for n in range(13)]
        assert driver.add(given).existing_count == 10
    copy = import_to(run.stubs, f"{run.run_id}-copy", export(run))
    assert copy.add(given).existing_count == 10


def test_embeddings_move_with_the_run(open_run):
    run = open_run(0)
    given = [prompt("a", [0.1, 0.2]), prompt("b")]
    run.add(given)
    copy = import_to(run.stubs, f"{run.run_id}-copy", export(run))
    again = copy.add(given)
    assert (again.added_count, again.existing_count) == (0, 2)
    assert copy.next(count=2).prompts[0].prompt.prompt_id in ("a", "b")


DAMAGED = {
    "not base64": {"rows": [0, 1], "values": "###"},
    "of no prompt": {"rows": [0, 9], "values": "AAAAAAAAAAA="},
    "out of order": {"rows": [1, 0], "values": "AAAAAAAAAAA="},
    "of no whole number": {"rows": [0, 1], "values": "AAAAAAA="},
    "not finite": {"rows": [0], "values": base64.b64encode(b"\x00\x7c\x00\x00").decode()},
    "without rows": {"values": "AAAAAAAAAAA="},
    "no column": [1, 2],
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_embeddings_are_named(open_run, raw, refused, start_server, case):
    run = open_run(0)
    run.add([prompt("a", [0.1, 0.2]), prompt("b", [0.3, 0.4])])
    sound, parts = raw.get(catalog_key(run, 0)), export(run)
    broken = json.dumps(json.loads(sound) | {"embeddings": DAMAGED[case]}).encode()
    raw.set(catalog_key(run, 0), broken)
    assert kinds(look(run.stubs, run.run_id)) == {"catalog_broken"}
    other = RunDriver(start_server().stubs, run.run_id)
    answer = refused(other.stubs.trainer.NextBatch, other.next_request())
    assert (answer.status, "embeddings" in answer.details) == ("DATA_LOSS", True)
    raw.set(catalog_key(run, 0), sound)
    assert look(run.stubs, run.run_id) == []
    for part in parts:
        if part.name == "prompts/0/catalog/0":
            part.content = broken
    copy = f"{run.run_id}-copy"
    run.stubs.operator.ImportRun(request(copy, parts))
    answer = refused(run.stubs.operator.ImportRun, request(copy, commit=True))
    assert (answer.status, "cannot be read" in answer.details) == ("INVALID_ARGUMENT", True)


def test_chunks_with_embeddings_of_two_lengths_are_named(open_run, raw, refused, start_server):
    run = open_run(0)
    run.add([prompt("a", [0.1, 0.2])])
    run.add([prompt("b", [0.3, 0.4])])
    shorter = stored(raw, run, 1) | {"embeddings": {"rows": [0], "values": "AAA="}}
    raw.set(catalog_key(run, 1), json.dumps(shorter))
    assert kinds(look(run.stubs, run.run_id)) == {"embeddings_uneven"}
    other = RunDriver(start_server().stubs, run.run_id)
    answer = refused(other.stubs.trainer.NextBatch, other.next_request())
    assert (answer.status, "must have 2" in answer.details) == ("DATA_LOSS", True)
