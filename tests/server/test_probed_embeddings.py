"""Embeddings that probers report: which prompts lack one, adding them, and what they change."""

from __future__ import annotations

import math
import struct
import threading

import numpy as np
import pytest

from curriculum_api.limits import MAX_ADD_EMBEDDINGS
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import prompt_pb2
from curriculum_server.engine import embedding
from tests.server.doctor.looking import look
from tests.server.embedded_runs import (
    believed,
    chunk_counts,
    key,
    telling,
    trained,
    unembedded_names,
    vector,
    vectors,
)
from tests.server.test_transfer import export, import_to


def column_names(server, run):
    return server.app.engine.served(run.run_id).run.mirror.catalog.features.names


# Which prompts lack one


def test_prompts_without_an_embedding_are_listed_with_their_texts_alone(open_run):
    run = open_run(0)
    run.add(
        [
            prompt_pb2.Prompt(prompt_id="a", domain="d", text="A?", payload_json="{}", tags=["t"]),
            prompt_pb2.Prompt(prompt_id="b", domain="d", text="B?", embedding=[1.0]),
            prompt_pb2.Prompt(prompt_id="c", domain="e", text="C?", features={"f": 1.0}),
            prompt_pb2.Prompt(prompt_id="d", domain="e", text="D?"),
        ]
    )
    run.embed({"c": [0.5]})
    assert run.unembedded() == pr.ListUnembeddedPromptsResponse(
        prompts=[{"prompt_id": "a", "text": "A?"}, {"prompt_id": "d", "text": "D?"}],
        unembedded_count=2,
    )


def test_pages_follow_the_pool_while_it_grows_and_others_embed(open_run):
    run, found, token = open_run(10), [], ""
    for step in range(9):
        page = run.unembedded(3, token)
        found += [int(prompt.prompt_id[1:]) for prompt in page.prompts]
        token = page.next_page_token
        if step == 0:
            run.embed(vectors(0, 4, 5))
            run.stubs.add_prompts(run.run_id, 13)
        if not token:
            break
    assert found == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12]
    assert page.unembedded_count == 10
    assert run.unembedded(4).unembedded_count == 10


def test_a_page_ends_where_texts_are_long(open_run):
    run = open_run(0)
    for first in (0, 20):
        run.add(
            [
                prompt_pb2.Prompt(prompt_id=f"p{n}", domain="d", text=f"{n}" + "x" * 250_000)
                for n in range(first, first + 20)
            ]
        )
    found, token, count = [], "", 0
    while not count or token:
        page = run.unembedded(1000, token)
        assert page.ByteSize() < embedding.PAGE_BYTES + 300_000
        found += [prompt.prompt_id for prompt in page.prompts]
        token, count = page.next_page_token, count + 1
    assert found == [f"p{n}" for n in range(40)]
    assert count == 3


def test_a_page_of_no_size_has_up_to_a_hundred_prompts(open_run):
    run = open_run(101)
    first = run.unembedded(0)
    assert [prompt.prompt_id for prompt in first.prompts] == [f"p{n}" for n in range(100)]
    rest = run.unembedded(0, first.next_page_token)
    assert [prompt.prompt_id for prompt in rest.prompts] == ["p100"]


def test_the_list_of_a_pool_without_gaps_is_empty(open_run):
    run = open_run(0)
    assert run.unembedded() == pr.ListUnembeddedPromptsResponse()
    run.stubs.add_prompts(run.run_id, 2)
    run.embed(vectors(0, 1))
    assert run.unembedded() == pr.ListUnembeddedPromptsResponse()


@pytest.mark.parametrize(
    ("page_size", "token", "said"),
    [
        (1001, "", "page_size=1001: must be in [0, 1000]"),
        (5, "x", "page_token: must come from the page before"),
        (5, "LTE=", "page_token: must come from the page before"),
    ],
)
def test_a_page_that_is_none_is_refused(open_run, refused, page_size, token, said):
    run = open_run(1)
    ask = pr.ListUnembeddedPromptsRequest(run_id=run.run_id, page_size=page_size, page_token=token)
    answer = refused(run.stubs.probe.ListUnembeddedPrompts, ask)
    assert (answer.status, answer.details) == ("INVALID_ARGUMENT", said)


# Adding them


def test_each_prompt_takes_its_first_embedding_alone(open_run, raw):
    run = open_run(6)
    assert run.embed(vectors(4, 1)) == (2, 0)
    first = raw.get(key(run, "embedding:0"))
    assert run.embed({"p1": vector(9), "p4": vector(9), "p2": vector(2)}) == (1, 2)
    assert run.embed(vectors(1, 2, 4)) == (0, 3)
    assert raw.get(key(run, "embedding:0")) == first
    assert chunk_counts(raw, run)[0] == 2
    assert struct.unpack(">3I", first[:12]) == (8, 1, 4)
    kept = np.frombuffer(first[12:], "<f2").reshape(2, 8)
    np.testing.assert_allclose(kept, [vector(1), vector(4)], atol=1e-3)
    assert unembedded_names(run) == ["p0", "p3", "p5"]


def test_a_prompts_own_embedding_stays(open_run, raw):
    run = open_run(0)
    given = [prompt_pb2.Prompt(prompt_id="a", domain="d", embedding=[0.25, 1.0])]
    run.add(given)
    assert run.embed({"a": [1.0, 2.0]}) == (0, 1)
    assert chunk_counts(raw, run) == (0, 0)
    assert run.add(given).existing_count == 1


def test_an_addition_repeated_after_its_prompts_were_embedded_adds_nothing(
    open_run, start_server, refused
):
    run = open_run(0)
    given = [prompt_pb2.Prompt(prompt_id=f"p{n}", domain="d") for n in range(3)]
    run.add(given)
    run.embed(vectors(0, 1, 2))
    for driver in (run, run.through(start_server().stubs)):
        assert driver.add(given).existing_count == 3
    given[0].embedding[:] = vector(0)
    addition = op.AddPromptsRequest(run_id=run.run_id, prompts=given)
    assert refused(run.stubs.operator.AddPrompts, addition).status == "ALREADY_EXISTS"


REFUSED = {
    "none": ({}, "len(embeddings)=0: must be in [1, 1000]"),
    "empty": ({"p0": []}, "len(embeddings[0].embedding)=0: must be in [1, 4096]"),
    "too long": ({"p0": [0.0] * 4097}, "len(embeddings[0].embedding)=4097: must be in [1, 4096]"),
    "not finite": (
        {"p0": [1.0], "p1": [math.nan]},
        "embeddings[1].embedding[0]=nan: must be in [-65504.0, 65504.0]",
    ),
    "too large": (
        {"p0": [0.0, -65536.0]},
        "embeddings[0].embedding[1]=-65536.0: must be in [-65504.0, 65504.0]",
    ),
    "no prompt's": (
        {"p0": [1.0], "q": [1.0]},
        "embeddings.prompt_id='q': must be a prompt of the pool",
    ),
    "nobody's": ({"": [1.0]}, "embeddings[0].prompt_id='': must be 1 to 256 bytes, is 0"),
    "of two lengths": (
        {"p0": [1.0], "p1": [1.0, 2.0]},
        "embeddings.embedding: 2 numbers of prompt_id='p1': must be 1, as the run's first "
        "embedding has",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_embedding_that_cannot_be_kept_is_refused_with_all_that_came_with_it(
    open_run, refused, raw, case
):
    run, (given, said) = open_run(3), REFUSED[case]
    answer = refused(run.stubs.probe.AddEmbeddings, run.embed_request(given))
    assert (answer.status, answer.details) == ("INVALID_ARGUMENT", said)
    assert unembedded_names(run) == ["p0", "p1", "p2"]
    assert raw.get(key(run, "embedding:0")) is None


def test_a_prompt_named_twice_is_refused(open_run, refused):
    run = open_run(3)
    asked = run.embed_request(vectors(0))
    asked.embeddings.append(asked.embeddings[0])
    answer = refused(run.stubs.probe.AddEmbeddings, asked)
    said = "embeddings[1].prompt_id='p0': must occur once in a request"
    assert (answer.status, answer.details) == ("INVALID_ARGUMENT", said)


def test_the_length_of_the_runs_first_embedding_binds_all(open_run, refused):
    run = open_run(4)
    run.embed(vectors(0, length=3))
    said = "2 numbers of prompt_id='p1': must be 3, as the run's first embedding has"
    answer = refused(run.stubs.probe.AddEmbeddings, run.embed_request(vectors(1, length=2)))
    assert said in answer.details
    addition = op.AddPromptsRequest(
        run_id=run.run_id,
        prompts=[prompt_pb2.Prompt(prompt_id="new", domain="d", embedding=[1.0])],
    )
    assert "must be 3" in refused(run.stubs.operator.AddPrompts, addition).details


def test_a_call_holds_as_many_embeddings_as_it_may(open_run, refused):
    run = open_run(MAX_ADD_EMBEDDINGS + 1)
    every = {f"p{n}": [n / 7] for n in range(MAX_ADD_EMBEDDINGS + 1)}
    answer = refused(run.stubs.probe.AddEmbeddings, run.embed_request(every))
    assert answer.details == "len(embeddings)=1001: must be in [1, 1000]"
    every.pop("p0")
    assert run.embed(every) == (MAX_ADD_EMBEDDINGS, 0)


def test_an_unnamed_call_is_refused(open_run, refused):
    run = open_run(1)
    asked = run.embed_request(vectors(0), request_id="")
    assert "request_id=''" in refused(run.stubs.probe.AddEmbeddings, asked).details


def test_two_servers_that_add_at_once_count_each_embedding_once(open_run, start_server):
    run = open_run(40)
    drivers = [run, run.through(start_server().stubs)]
    counts = [[], []]

    def add(at):
        for first in range(0, 40, 4):
            counts[at].append(drivers[at].embed(vectors(*range(first, first + 4))))

    threads = [threading.Thread(target=add, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added for some in counts for added, _ in some) == 40
    assert sum(known for some in counts for _, known in some) == 40
    assert look(run.stubs, run.run_id) == []


# What they change


@pytest.mark.parametrize(
    ("sizes", "used"),
    [
        ((3, 1, 1), (0, 0, 0)),
        ((8,), (1,)),
        ((7, 1, 3, 1, 1, 1, 1, 1), (0, 2, 2, 4, 4, 6, 7, 8)),
        ((16,), (1,)),
    ],
)
def test_embeddings_describe_prompts_once_they_are_as_many_as_are_left(open_run, raw, sizes, used):
    run, first, found = open_run(16), 0, []
    for size in sizes:
        run.embed(vectors(*range(first, first + size)))
        first += size
        found.append(chunk_counts(raw, run)[1])
    assert tuple(found) == used


@pytest.fixture
def known(open_run):
    """A run of which few prompts were visited, and whose texts say nothing of what passes."""
    return trained(open_run(300, domains=1, window_steps=2))


def unvisited_means(run):
    """Mean believed pass rates of even and odd prompts that were never attempted."""
    states = [s for s in run.list().prompts if not s.attempt_count]
    return [
        np.mean([s.pass_rate for s in states if int(s.prompt_id[1:]) % 2 == odd]) for odd in (0, 1)
    ]


def test_what_is_believed_of_unvisited_prompts_follows_from_them(known, server):
    before = believed(known)
    even, odd = unvisited_means(known)
    assert abs(even - odd) < 0.1
    known.embed(telling(*range(149)))
    assert believed(known) == before  # too few, and they wait
    known.embed(telling(*range(149, 300)))
    even, odd = unvisited_means(known)
    assert even - odd > 0.3
    assert any(name.startswith("embedding:") for name in column_names(server, known))


def test_servers_that_came_by_them_differently_believe_and_serve_the_same(known, start_server):
    early = start_server()
    bystander = known.through(early.stubs)
    believed(bystander)
    for first in range(0, 300, 50):
        known.embed(telling(*range(first, first + 50)))
        late = start_server()
        drivers = [known, bystander, known.through(late.stubs)]
        beliefs = [believed(driver) for driver in drivers]
        assert beliefs[0] == beliefs[1] == beliefs[2]
    copy = import_to(known.stubs, f"{known.run_id}-copy", export(known))
    assert believed(copy) == beliefs[0]
    again = copy.through(late.stubs)
    batches = [driver.next("same", count=20, step=9) for driver in (bystander, again)]
    served = [[p.SerializeToString() for p in batch.prompts] for batch in batches]
    assert served[0] == served[1]


def test_prompts_that_come_and_are_embedded_later_are_described_alike_everywhere(
    known, start_server
):
    known.embed(telling(*range(300)))
    believed(known)
    for count in (303, 310):
        known.stubs.add_prompts(known.run_id, count, domains=1)
        believed(known)
        known.embed(telling(*range(count - 3, count)))
        assert believed(known) == believed(known.through(start_server().stubs))


def test_a_rollback_keeps_them(known, raw, start_server):
    known.checkpoint("a", 8)
    known.embed(telling(*range(300)))
    trained(known, range(9, 12))
    known.rollback("a")
    assert known.unembedded().unembedded_count == 0
    even, odd = unvisited_means(known)
    assert even - odd > 0.3
    assert believed(known) == believed(known.through(start_server().stubs))
