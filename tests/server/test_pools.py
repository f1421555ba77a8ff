"""Filling a pool, listing it, and looking at single prompts."""

from __future__ import annotations

import base64
import json
import math

import pytest

from curriculum_api.v1 import batch_pb2, prompt_pb2
from curriculum_api.v1 import operator_service_pb2 as op


def prompt(prompt_id="new", **fields):
    return prompt_pb2.Prompt(**{"prompt_id": prompt_id, "domain": "math", "text": "?"} | fields)


REFUSED = [
    ([], "len(prompts)=0: must be in [1, 4096]"),
    ([prompt(f"n{i}") for i in range(4097)], "len(prompts)=4097: must be in [1, 4096]"),
    ([prompt("a"), prompt("a")], "prompts[1].prompt_id='a': must occur once in a request"),
    ([prompt("")], "prompts[0].prompt_id='': must be 1 to 256 bytes, is 0"),
    ([prompt("a"), prompt("x" * 257)], "must be 1 to 256 bytes, is 257"),
    ([prompt("é" * 129)], "must be 1 to 256 bytes, is 258"),
    ([prompt(domain="")], "prompts[0].domain='': must be 1 to 128 bytes"),
    ([prompt(domain="d" * 129)], "must be 1 to 128 bytes, is 129"),
    ([prompt(text="x" * (256 * 1024 + 1))], "bytes of text and payload_json=262145: must be in"),
    (
        [prompt(text="x" * (256 * 1024), payload_json="{}")],
        "prompts[0]: bytes of text and payload_json=262146: must be in [0, 262144]",
    ),
    ([prompt(payload_json="{")], "prompts[0].payload_json='{': must be JSON"),
    ([prompt(payload_json="[1]")], "prompts[0].payload_json='[1]': must be a JSON object"),
    ([prompt(payload_json="1")], "prompts[0].payload_json='1': must be a JSON object"),
    ([prompt(payload_json='{"a": NaN}')], "prompts[0].payload_json='{\"a\": NaN}': must be JSON"),
    ([prompt(payload_json="[" * 100_000)], "must be JSON"),
    ([prompt(payload_json='{"a": %s}' % ("9" * 5000))], "must be JSON"),
    ([prompt(tags=["t"] * 17)], "len(prompts[0].tags)=17: must be in [0, 16]"),
    ([prompt(tags=["ok", ""])], "prompts[0].tags='': must be 1 to 64 bytes"),
    ([prompt(tags=["t" * 65])], "must be 1 to 64 bytes, is 65"),
    ([prompt(features={f"f{i}": 0 for i in range(33)})], "len(prompts[0].features)=33: must be in"),
    ([prompt(features={"f" * 65: 0})], "must be 1 to 64 bytes, is 65"),
    ([prompt(features={"": 0})], "prompts[0].features='': must be 1 to 64 bytes"),
    ([prompt(features={"f": math.nan})], "prompts[0].features['f']=nan: must be finite"),
    ([prompt("a"), prompt("b", features={"f": -math.inf})], "prompts[1].features['f']=-inf: must"),
]  # fmt: skip


@pytest.mark.parametrize(("prompts", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_a_bad_addition_is_refused_by_field_and_adds_nothing(open_run, refused, prompts, said):
    run = open_run(3)
    before = run.seen()
    request = op.AddPromptsRequest(run_id=run.run_id, prompts=prompts)
    answer = refused(run.stubs.operator.AddPrompts, request)
    assert (answer.status, answer.error) == ("INVALID_ARGUMENT", "InvalidRequestError")
    assert said in answer.details
    assert run.seen() == before


def test_an_id_with_other_content_refuses_the_whole_addition(open_run, refused):
    run = open_run(0)
    run.add([prompt("a"), prompt("b", features={"f": 1, "g": 2}, tags=["x"])])
    before = run.seen()
    for other in (
        prompt("b", text="other", features={"f": 1, "g": 2}, tags=["x"]),
        prompt("b", features={"f": 1, "g": 3}, tags=["x"]),
        prompt("b", features={"f": 1, "g": 2}, tags=["y"]),
        prompt("b", domain="code", features={"f": 1, "g": 2}, tags=["x"]),
    ):
        request = op.AddPromptsRequest(run_id=run.run_id, prompts=[prompt("new"), other])
        answer = refused(run.stubs.operator.AddPrompts, request)
        assert (answer.status, answer.error) == ("ALREADY_EXISTS", "AlreadyExistsError")
        assert answer.details == "prompts.prompt_id='b': is in the pool with other content"
        assert run.seen() == before


def test_prompts_that_are_there_already_count_as_existing(open_run):
    run = open_run(0)
    features = {f"f{i}": i / 7 for i in range(20)}
    first = run.add([prompt("a"), prompt("b", features=features)])
    assert (first.added_count, first.existing_count, first.prompt_count) == (2, 0, 2)
    reordered = dict(reversed(features.items()))
    again = run.add([prompt("b", features=reordered), prompt("c"), prompt("a")])
    assert (again.added_count, again.existing_count, again.prompt_count) == (1, 2, 3)
    assert [state.prompt_id for state in run.list().prompts] == ["a", "b", "c"]


def test_a_prompt_is_served_and_shown_as_it_was_added(open_run):
    run = open_run(0)
    given = prompt(
        "naïve/∑ 1\n",
        domain="logik – schwer",
        text="\u0000 ünï\u2028code 🧮" + "x" * 100_000,
        payload_json=json.dumps({"answer": "🧮", "nested": {"a": [1, None, 2.5]}}),
        tags=["a", "b c"],
        features={"rate": 0.125, "length": -3e300},
    )
    run.add([given])
    assert run.prompt(given.prompt_id).prompt == given
    (served,) = run.next(count=1).prompts
    assert served.prompt == given


def test_the_largest_prompts_are_taken(open_run):
    run = open_run(0)
    given = [
        prompt("i" * 256, domain="d" * 128, text="x" * (256 * 1024), tags=["t" * 64] * 16),
        prompt("b", text="", features={f"{i:064}": 1.0 for i in range(32)}),
    ]
    run.add(given)
    served = {p.prompt.prompt_id: p.prompt for p in run.next(count=2).prompts}
    assert [served[p.prompt_id] for p in given] == given


def test_a_run_has_a_bounded_number_of_domains(open_run, refused):
    run = open_run(0)
    run.add([prompt(f"p{i}", domain=f"{i:0128}") for i in range(1024)])
    request = op.AddPromptsRequest(run_id=run.run_id, prompts=[prompt("more")])
    answer = refused(run.stubs.operator.AddPrompts, request)
    assert (answer.status, "at most 1024" in answer.details) == ("INVALID_ARGUMENT", True)
    assert len(run.stats().domains) == 1024
    # Even an answer that could name a thousand domains fits into a status.
    request = op.ListPromptsRequest(run_id=run.run_id, domain="math")
    answer = refused(run.stubs.operator.ListPrompts, request)
    assert (answer.status, answer.error) == ("NOT_FOUND", "NotFoundError")
    assert answer.details.startswith("domain='math': must be one of 000")


def test_values_of_any_length_are_refused_in_few_words(open_run, refused):
    run = open_run(2)
    for request_id in ("x" * 1_000_000, "🧮" * 100_000, "\n" * 100_000):
        answer = refused(run.stubs.trainer.NextBatch, run.next_request(request_id))
        assert answer.status == "INVALID_ARGUMENT"
    for name in ("c" * 1_000_000, "🧮" * 100_000):
        request = run.report_request(
            run.next(count=1),
            {0: [1.0]},
            channels={name: batch_pb2.ChannelValues(values=[0])},
        )
        run.release(batch_pb2.Batch(batch_id=request.batch_id))
        answer = refused(run.stubs.trainer.ReportOutcomes, request)
        assert answer.status == "INVALID_ARGUMENT"
        assert answer.details.startswith("outcomes.channels[")


def test_prompts_added_while_the_pool_is_served_are_served(open_run):
    run = open_run(4)
    first = run.next(count=10)
    assert len(first.prompts) == 4
    run.add([prompt("late-1"), prompt("late-2")])
    second = run.next(count=10)
    assert {p.prompt.prompt_id for p in second.prompts} == {"late-1", "late-2"}
    run.report(first, {0: [1.0] * 8})
    run.report(second, {0: [0.0] * 8, 1: [1.0]})
    assert run.stats().attempt_count == 17
    assert sum(domain.prompt_count for domain in run.stats().domains) == 6


def test_prompts_are_listed_in_the_order_of_adding_in_pages(open_run):
    run = open_run(25)
    found, token, pages = [], "", 0
    while pages == 0 or token:
        answer = run.list(page_size=10, page_token=token)
        found += [state.prompt_id for state in answer.prompts]
        token, pages = answer.next_page_token, pages + 1
    assert found == [f"p{i}" for i in range(25)]
    assert pages == 3


def test_a_page_has_a_hundred_prompts_unless_told(open_run):
    run = open_run(120)
    answer = run.list(page_size=0)
    assert len(answer.prompts) == 100
    assert len(run.list(page_size=0, page_token=answer.next_page_token).prompts) == 20


def test_prompts_are_listed_by_domain_and_band(open_run, refused):
    run = open_run(12, domains=3, selection={"strategy": "uniform"})
    batch = run.next(count=6)
    groups = {slot: [float(slot % 2)] * 8 for slot in range(6)}
    run.report(batch, groups)
    for domain in ("d0", "d2"):
        states = run.list(domain=domain).prompts
        assert [s.prompt_id for s in states] == [f"p{i}" for i in range(int(domain[1]), 12, 3)]
        assert {s.domain for s in states} == {domain}
    by_band = {
        band: [s.prompt_id for s in run.list(band=band).prompts]
        for band in prompt_pb2.Band.values()
        if band
    }
    unseen = {f"p{i}" for i in range(12)} - {p.prompt.prompt_id for p in batch.prompts}
    assert set(by_band[prompt_pb2.BAND_UNSEEN]) == unseen
    found = [prompt_id for prompt_ids in by_band.values() for prompt_id in prompt_ids]
    assert sorted(found) == sorted(f"p{i}" for i in range(12))
    both = run.list(domain="d0", band=prompt_pb2.BAND_UNSEEN).prompts
    assert {s.prompt_id for s in both} == {f"p{i}" for i in range(0, 12, 3)} & unseen
    # A page within a filter goes on where it ended.
    first = run.list(page_size=1, domain="d1")
    second = run.list(page_size=10, domain="d1", page_token=first.next_page_token)
    assert [s.prompt_id for s in [*first.prompts, *second.prompts]] == ["p1", "p4", "p7", "p10"]
    answer = refused(
        run.stubs.operator.ListPrompts, op.ListPromptsRequest(run_id=run.run_id, domain="d3")
    )
    assert (answer.status, answer.details) == (
        "NOT_FOUND",
        "domain='d3': must be one of d0, d1, d2",
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"page_size": 1001}, "page_size=1001: must be in [0, 1000]"),
        ({"page_token": "%%%"}, "page_token: must come from the page before"),
        ({"page_token": base64.urlsafe_b64encode(b"x").decode()}, "page_token: must come"),
        ({"page_token": base64.urlsafe_b64encode(b"-1").decode()}, "page_token: must come"),
        ({"page_token": base64.urlsafe_b64encode(b"9" * 5000).decode()}, "page_token: must come"),
        ({"domain": "d" * 129}, "must be 0 to 128 bytes, is 129"),
        ({"band": 0}, "band=0: must be one of 1, 2, 3, 4"),
        ({"band": 5}, "band=5: must be one of 1, 2, 3, 4"),
    ],
)
def test_a_bad_page_of_prompts_is_refused(open_run, refused, fields, said):
    run = open_run(2)
    request = op.ListPromptsRequest(run_id=run.run_id, **fields)
    answer = refused(run.stubs.operator.ListPrompts, request)
    assert (answer.status, answer.error) == ("INVALID_ARGUMENT", "InvalidRequestError")
    assert said in answer.details


def test_a_prompt_that_is_not_there_is_not_found(open_run, refused):
    run = open_run(2)
    request = op.GetPromptRequest(run_id=run.run_id, prompt_id="p9")
    answer = refused(run.stubs.operator.GetPrompt, request)
    assert (answer.status, answer.details) == ("NOT_FOUND", "prompt_id='p9': is not in the pool")
    request = op.GetPromptRequest(run_id=run.run_id, prompt_id="")
    assert refused(run.stubs.operator.GetPrompt, request).status == "INVALID_ARGUMENT"


def test_a_prompts_state_follows_its_serving_and_its_attempts(open_run):
    run = open_run(1)
    state = run.prompt("p0").state
    assert (state.band, state.attempt_count, state.pass_rate) == (prompt_pb2.BAND_UNSEEN, 0, 0.5)
    assert not state.HasField("last_served_step")
    assert not state.HasField("lease_expire_time")
    batch = run.next(count=1, step=7)
    state = run.prompt("p0").state
    assert (state.last_served_step, state.attempt_count) == (7, 0)
    assert state.lease_expire_time == batch.lease_expire_time
    run.report(batch, {0: [1.0] * 2 + [0.0] * 6})
    state = run.prompt("p0").state
    assert (state.band, state.attempt_count, state.pass_count) == (prompt_pb2.BAND_EDGE, 8, 2)
    assert not state.HasField("lease_expire_time")
    assert state.pass_rate_low < state.pass_rate < state.pass_rate_high
