"""Content that no call could have brought: the doctor names it, and a run that cannot be read hides
no other."""

from __future__ import annotations

import json
import logging
import math

import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from tests.server.doctor.looking import kinds, look


@pytest.fixture
def run(open_run):
    run = open_run(4)
    run.play(0)
    return run


def key(run, name):
    return f"cur:{{{run.run_id}}}:{name}"


def reword(store, run, change):
    document = json.loads(store.hget(key(run, "meta"), "doc"))
    change(document)
    store.hset(key(run, "meta"), "doc", json.dumps(document))


def listed(stubs):
    return [run.run_id for run in stubs.operator.ListRuns(op.ListRunsRequest()).runs]


DOCUMENTS = {
    "a seed above u64": lambda d: d["config"].update(seed=2**64),
    "a weight that is no float": lambda d: d["config"].update(objective={"reward": 10**400}),
    "a timeline above u32": lambda d: d.update(timeline=2**40),
    "a time that none is": lambda d: d.update(create_ms=10**30),
    "a URI that is no text": lambda d: d.update(policy_step=1, policy_uri="\ud800"),
    "a domain that is no text": lambda d: d["config"]["selection"].update(
        domain_shares={"\ud800": 0.5}
    ),
    "another first window": lambda d: d["windows"][0].update(last_step=1),
    "a future window sealed": lambda d: d.update(sealed_window=99),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_that_no_server_writes_is_named(run, stubs, store, case):
    reword(store, run, DOCUMENTS[case])
    assert kinds(look(stubs, run.run_id)) == {"document_broken"}
    assert kinds(look(stubs)) == {"document_broken"}


UNREADABLE = {
    **{name: DOCUMENTS[name] for name in list(DOCUMENTS)[:6]},
    "of a newer server": lambda d: d.update(schema=99),
    "no windows": lambda d: d.pop("windows"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_run_that_cannot_be_shown_is_left_out_of_the_list_and_logged(
    run, open_run, stubs, store, caplog, case
):
    others = [open_run(1).run_id for _ in range(2)]
    reword(store, run, UNREADABLE[case])
    with caplog.at_level(logging.ERROR, "curriculum_server"):
        assert listed(stubs) == sorted(others)
    assert f"run not listed run={run.run_id} error=" in caplog.text


@pytest.mark.parametrize("doc", ["{", "[]", "null", '{"schema":3}'])
def test_a_document_that_is_none_hides_no_other_run(run, open_run, stubs, store, doc):
    other = open_run(1).run_id
    store.hset(key(run, "meta"), "doc", doc)
    assert listed(stubs) == [other]


def test_the_pages_of_a_list_go_on_behind_a_run_that_cannot_be_shown(open_run, stubs, store):
    runs = sorted((open_run(0) for _ in range(5)), key=lambda run: run.run_id)
    reword(store, runs[1], DOCUMENTS["a timeline above u32"])
    found, token = [], ""
    while not found or token:
        page = stubs.operator.ListRuns(op.ListRunsRequest(page_size=2, page_token=token))
        found += [run.run_id for run in page.runs]
        token = page.next_page_token
    assert found == [run.run_id for run in runs if run is not runs[1]]


@pytest.mark.parametrize(
    ("name", "value"), [("policy_step", 2**32 - 1), ("policy_step", "9" * 5000), ("seq", 10**30)]
)
def test_a_number_that_none_is_is_named(run, stubs, store, name, value):
    store.hset(key(run, "meta"), name, value)
    assert kinds(look(stubs, run.run_id)) == {"meta_broken"}


@pytest.mark.parametrize("value", [10**15 + 1, "9" * 5000, "x"])
def test_a_counter_that_none_is_is_named(run, stubs, store, value):
    store.hset(key(run, "meta"), "mixed:0", value)
    assert kinds(look(stubs, run.run_id)) == {"group_count_orphaned"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.features.update(f=math.nan), "prompt 'p2'.features['f']=nan: must be finite"),
        (lambda p: p.embedding.append(1.0), "prompt 'p2'.embedding: must be in the catalog"),
        (lambda p: p.tags.extend(["t"] * 17), "len(prompt 'p2'.tags)=17: must be in [0, 16]"),
    ],
)
@pytest.mark.parametrize("is_canonical", [True, False])
def test_a_prompt_that_no_call_could_have_brought_is_named(
    run, stubs, store, change, said, is_canonical
):
    chunk = op.AddPromptsRequest.FromString(store.get(key(run, "payload:0")))
    change(chunk.prompts[2])
    content = chunk.SerializeToString(deterministic=True)
    if not is_canonical:  # a prompt whose fields come in another order can be read all the same
        plain = op.AddPromptsRequest(prompts=chunk.prompts[3:]).SerializeToString()
        fields = split(chunk.prompts[3].SerializeToString())
        body = b"".join(reversed(fields))
        content = content[: -len(plain)] + plain[: len(plain) - len(body)] + body
    store.set(key(run, "payload:0"), content)
    (finding,) = look(stubs, run.run_id)
    assert finding.kind == "prompt_broken"
    assert said in finding.problem


def split(message):
    """The fields of a message that are texts of less than 128 bytes, each with its tag."""
    fields, at = [], 0
    while at < len(message):
        end = at + 2 + message[at + 1]
        fields.append(message[at:end])
        at = end
    return fields
