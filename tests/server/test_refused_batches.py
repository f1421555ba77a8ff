"""What trainers and probers get wrong with batches:
the status, the words, and that nothing of it is applied."""

from __future__ import annotations

import pytest

from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import prompt_pb2
from curriculum_api.v1 import trainer_service_pb2 as tr

LONG_ID = "x" * 129


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt_count": 0}, "prompt_count=0: must be in [1, 4096]"),
        ({"prompt_count": 4097}, "prompt_count=4097: must be in [1, 4096]"),
        ({"request_id": ""}, "request_id='': must be 1 to 128 bytes, is 0"),
        ({"request_id": LONG_ID}, "must be 1 to 128 bytes, is 129"),
        ({"request_id": "é" * 65}, "must be 1 to 128 bytes, is 130"),
        ({"run_id": ""}, "run_id='': must be 1 to 64 characters of a-z"),
        ({"run_id": "a b"}, "run_id='a b': must be 1 to 64 characters"),
        ({"run_id": "a\n"}, "run_id='a\\n': must be"),
        ({"run_id": "{a}"}, "run_id='{a}': must be"),
        ({"run_id": "r" * 65}, "must be 1 to 64 characters"),
        ({"policy_step": 10_001}, "policy_step=10001: must be in [0, 10000]"),
        ({"policy_step": 2**64 - 1}, "policy_step=18446744073709551615: must be in [0, 10000]"),
        ({"timeline": 1}, "timeline=1: must be 0"),
    ],
)
def test_a_bad_request_for_a_batch_is_refused_by_field(open_run, refused_untouched, fields, said):
    run = open_run(10)
    request = run.next_request(count=2)
    for name, value in fields.items():
        setattr(request, name, value)
    answer = refused_untouched(run, run.stubs.trainer.NextBatch, request)
    assert (answer.status, answer.error) == ("INVALID_ARGUMENT", "InvalidRequestError")
    assert said in answer.details


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt_count": 0}, "prompt_count=0: must be in [1, 4096]"),
        ({"prompt_count": 4097}, "prompt_count=4097: must be in [1, 4096]"),
        ({"request_id": LONG_ID}, "must be 1 to 128 bytes, is 129"),
        ({"attempt_count": 0}, "attempt_count=0: must be in [1, 1024]"),
        ({"attempt_count": 1025}, "attempt_count=1025: must be in [1, 1024]"),
        ({"policy_step": 10_001}, "policy_step=10001: must be in [0, 10000]"),
    ],
)
def test_a_bad_request_for_probes_is_refused_by_field(open_run, refused_untouched, fields, said):
    run = open_run(10)
    request = pr.LeaseProbesRequest(run_id=run.run_id, request_id="probes", prompt_count=2)
    for name, value in fields.items():
        setattr(request, name, value)
    answer = refused_untouched(run, run.stubs.probe.LeaseProbes, request)
    assert (answer.status, said in answer.details) == ("INVALID_ARGUMENT", True)


def test_a_request_id_serves_one_request_only(open_run, refused_untouched):
    run = open_run(10)
    run.next("batch", count=2)
    for request in (
        run.next_request("batch", count=3),
        run.next_request("batch", count=2, step=1),
        run.next_request("batch", count=2, step=900),
    ):
        answer = refused_untouched(run, run.stubs.trainer.NextBatch, request)
        assert (answer.status, answer.error) == ("ALREADY_EXISTS", "AlreadyExistsError")
        assert answer.details.startswith("request_id='batch': was used with other content")


def test_a_trainers_request_id_does_not_serve_a_prober(open_run, refused):
    run = open_run(10)
    run.next("batch", count=2)
    request = pr.LeaseProbesRequest(run_id=run.run_id, request_id="batch", prompt_count=2)
    assert refused(run.stubs.probe.LeaseProbes, request).status == "ALREADY_EXISTS"


@pytest.mark.parametrize(
    ("service", "method"),
    [("trainer", "ReleaseBatch"), ("probe", "RenewProbes")],
)
def test_giving_back_or_keeping_an_unknown_batch_is_not_found(
    stubs, open_run, refused, service, method
):
    run = open_run(10)
    kind = {"ReleaseBatch": tr.ReleaseBatchRequest, "RenewProbes": pr.RenewProbesRequest}[method]
    call = getattr(getattr(stubs, service), method)
    assert refused(call, kind(run_id=run.run_id, batch_id="b")).status == "NOT_FOUND"
    answer = refused(call, kind(run_id=run.run_id, batch_id=""))
    assert (answer.status, "batch_id=''" in answer.details) == ("INVALID_ARGUMENT", True)
    answer = refused(call, kind(run_id=run.run_id, batch_id="b", timeline=3))
    assert (answer.status, answer.details) == ("INVALID_ARGUMENT", "timeline=3: must be 0")


def test_a_batch_too_large_for_a_message_is_refused_and_leases_nothing(open_run, refused):
    run = open_run(0)
    text = "x" * 250 * 1024
    for first in range(0, 280, 70):
        run.add(
            prompt_pb2.Prompt(prompt_id=f"large-{i}", domain="d", text=text)
            for i in range(first, first + 70)
        )
    answer = refused(run.stubs.trainer.NextBatch, run.next_request(count=280))
    assert answer.status == "INVALID_ARGUMENT"
    assert answer.details.startswith("prompt_count=280: these prompts have 71")
    assert run.stats().leased_prompt_count == 0
    assert len(run.next(count=200).prompts) == 200
