"""What trainers and probers get wrong: the status, the words, and that nothing of it is applied."""

from __future__ import annotations

import math

import grpc
import pytest

from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import trainer_service_pb2 as tr

LONG_ID = "x" * 129


@pytest.fixture
def refused_untouched(refused):
    """Refuses, and compares all that is seen of the run before and after."""

    def check(run, call, request):
        before = run.seen()
        answer = refused(call, request)
        assert run.seen() == before
        return answer

    return check


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


def test_a_run_that_does_not_exist_is_not_found_by_any_call(stubs, open_run, refused):
    run = open_run(0)
    run.run_id = "no-such-run"
    batch = batch_pb2.Batch(batch_id="b")
    names = {"run_id": run.run_id, "batch_id": "b"}
    mark = run_pb2.Checkpoint(name="c")
    calls = [
        (stubs.trainer.NextBatch, run.next_request()),
        (stubs.trainer.ReportOutcomes, run.report_request(batch, {0: [1.0]})),
        (stubs.trainer.ReleaseBatch, tr.ReleaseBatchRequest(**names)),
        (stubs.trainer.PublishPolicy, tr.PublishPolicyRequest(
            run_id=run.run_id, policy=run_pb2.Policy(uri="/w"))),
        (stubs.trainer.Checkpoint, tr.CheckpointRequest(run_id=run.run_id, checkpoint=mark)),
        (stubs.trainer.Rollback, tr.RollbackRequest(
            run_id=run.run_id, request_id="r", checkpoint_name="c")),
        (stubs.probe.RenewProbes, pr.RenewProbesRequest(**names)),
        (stubs.probe.ReportProbes, run.report_request(
            batch, {0: [1.0]}, kind=pr.ReportProbesRequest)),
        (stubs.probe.LeaseProbes, pr.LeaseProbesRequest(
            run_id=run.run_id, request_id="p", prompt_count=1)),
    ]  # fmt: skip
    for call, request in calls:
        answer = refused(call, request)
        assert (answer.status, answer.error) == ("NOT_FOUND", "NotFoundError")
        assert answer.details == "run_id='no-such-run': there is no such run"


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
    ("rewards", "fields", "said"),
    [
        ({}, {}, "len(outcomes.slots)=0: must be in [1, 65536]"),
        ({0: [0.0] * 65_537}, {}, "len(outcomes.slots)=65537: must be in [1, 65536]"),
        ({0: [1.5]}, {}, "outcomes.rewards[0]=1.5: must be in [0, 1]"),
        ({0: [1.0, -0.25]}, {}, "outcomes.rewards[1]=-0.25: must be in [0, 1]"),
        ({0: [0.0], 1: [math.nan]}, {}, "outcomes.rewards[1]=nan: must be in [0, 1]"),
        ({0: [math.inf]}, {}, "outcomes.rewards[0]=inf: must be in [0, 1]"),
        ({0: [-math.inf]}, {}, "outcomes.rewards[0]=-inf: must be in [0, 1]"),
        ({2: [1.0]}, {}, "outcomes.slots[0]=2: must be in [0, 1]"),
        ({0: [1.0], 2**32 - 1: [1.0]}, {}, "outcomes.slots[1]=4294967295: must be in [0, 1]"),
        ({0: [1.0]}, {"rewards": []}, "len(outcomes.rewards)=0: must be 1, as outcomes.slots"),
        ({0: [1.0]}, {"rewards": [1, 1]}, "len(outcomes.rewards)=2: must be 1"),
        ({0: [1.0]}, {"token_counts": [1, 2]}, "len(outcomes.token_counts)=2: must be 1"),
        (
            {0: [1.0]},
            {"channels": {"confidence": batch_pb2.ChannelValues()}},
            "len(outcomes.channels['confidence'].values)=0: must be 1",
        ),
        (
            {0: [1.0]},
            {"channels": {"entropy": batch_pb2.ChannelValues(values=[0.5])}},
            "outcomes.channels[entropy]: must be one of confidence",
        ),
        (
            {0: [1.0, 0.0]},
            {"channels": {"confidence": batch_pb2.ChannelValues(values=[1.0, 1.5])}},
            "outcomes.channels[confidence].values[1]=1.5: must be in [-1, 1]",
        ),
        (
            {0: [1.0]},
            {"channels": {"confidence": batch_pb2.ChannelValues(values=[math.nan])}},
            "outcomes.channels[confidence].values[0]=nan: must be in [-1, 1]",
        ),
        ({0: [1.0]}, {"request_id": ""}, "request_id='': must be 1 to 128 bytes"),
        ({0: [1.0]}, {"request_id": LONG_ID}, "must be 1 to 128 bytes, is 129"),
        ({0: [1.0]}, {"batch_id": ""}, "batch_id='': must be 1 to 128 bytes"),
        ({0: [1.0]}, {"batch_id": LONG_ID}, "must be 1 to 128 bytes, is 129"),
        ({0: [1.0]}, {"run_id": "a/b"}, "run_id='a/b': must be 1 to 64 characters"),
        ({0: [1.0]}, {"timeline": 1}, "timeline=1: must be 0"),
        ({0: [1.0]}, {"policy_step": 10_001}, "policy_step=10001: must be in [0, 10000]"),
        ({0: [1.0]}, {"policy_step": 2**63}, "policy_step=9223372036854775808: must be in"),
    ],
)
def test_a_bad_report_is_refused_by_field(open_run, refused_untouched, rewards, fields, said):
    channel = run_pb2.Channel(name="confidence", min_value=-1, max_value=1)
    run = open_run(10, channels=[channel])
    batch = run.next(count=2)
    for kind, call in (
        (tr.ReportOutcomesRequest, run.stubs.trainer.ReportOutcomes),
        (pr.ReportProbesRequest, run.stubs.probe.ReportProbes),
    ):
        request = run.report_request(batch, rewards, kind=kind, **{"request_id": "report"} | fields)
        answer = refused_untouched(run, call, request)
        assert (answer.status, answer.error) == ("INVALID_ARGUMENT", "InvalidRequestError")
        assert said in answer.details
    # The request_id of a refused report is still to be had.
    assert run.report(batch, {0: [1.0], 1: [0.0]}, request_id="report").attempt_count == 2


def test_a_single_bad_row_refuses_the_whole_report(open_run, refused_untouched):
    run = open_run(10)
    batch = run.next(count=4)
    rewards = {0: [1.0] * 8, 1: [0.0] * 8, 2: [1.0] * 7 + [2.0]}
    refused_untouched(run, run.stubs.trainer.ReportOutcomes, run.report_request(batch, rewards))
    assert run.counts() == {}


def test_a_channel_of_a_run_that_declares_none_is_refused(open_run, refused):
    run = open_run(10)
    request = run.report_request(
        run.next(), {0: [1.0]}, channels={"x": batch_pb2.ChannelValues(values=[0])}
    )
    answer = refused(run.stubs.trainer.ReportOutcomes, request)
    assert answer.details.endswith("[x]: must be one of none: the run declares no channels")


def test_a_step_of_a_window_that_is_closed_is_refused(open_run, refused_untouched):
    run = open_run(40, window_steps=1)
    for step in range(10):
        run.play(step, count=2)
    late = run.next(count=2, step=9)
    for call, request in (
        (run.stubs.trainer.NextBatch, run.next_request(step=1)),
        (run.stubs.trainer.ReportOutcomes, run.report_request(late, {0: [1.0]}, policy_step=1)),
    ):
        answer = refused_untouched(run, call, request)
        assert answer.status == "INVALID_ARGUMENT"
        assert answer.details == "policy_step=1: must be in [2, 10009]; older windows are closed"


@pytest.mark.parametrize("fields", [{"batch_id": "no-such-batch"}, {"batch_id": "batch "}])
def test_a_report_for_a_batch_that_was_never_made_is_not_found(open_run, refused_untouched, fields):
    run = open_run(10)
    batch = run.next("batch", count=2)
    answer = refused_untouched(
        run, run.stubs.trainer.ReportOutcomes, run.report_request(batch, {0: [1.0]}, **fields)
    )
    assert (answer.status, answer.error) == ("NOT_FOUND", "NotFoundError")
    assert answer.details == (
        f"batch_id={fields['batch_id']!r}: there is no such batch on timeline 0; "
        "it was never made or is kept no longer"
    )


def test_a_batch_of_another_timeline_is_not_found_on_this_one(open_run, refused):
    run = open_run(10)
    run.checkpoint("start", 0)
    batch = run.next("batch", count=2)
    run.rollback("start")
    request = run.report_request(batch, {0: [1.0]}, timeline=1)
    answer = refused(run.stubs.trainer.ReportOutcomes, request)
    assert (answer.status, "on timeline 1" in answer.details) == ("NOT_FOUND", True)


def test_more_attempts_than_were_allotted_are_refused(open_run, refused_untouched):
    run = open_run(10, selection={"group_size": 4})
    batch = run.next(count=2)
    run.report(batch, {0: [1.0, 0.0, 0.0], 1: [1.0] * 4})
    for rewards, said in (
        ({0: [1.0, 1.0]}, "slots=0: must be given at most 4 attempts; 3 are reported and 2 came"),
        ({0: [1.0], 1: [1.0]}, "slots=1: must be given at most 4 attempts; 4 are reported"),
    ):
        for step in (0, 900):
            request = run.report_request(batch, rewards, policy_step=step)
            answer = refused_untouched(run, run.stubs.trainer.ReportOutcomes, request)
            assert (answer.status, answer.error) == ("FAILED_PRECONDITION", "StateError")
            assert said in answer.details
    assert run.report(batch, {0: [1.0]}).completed_group_count == 1


def test_a_released_slot_takes_no_attempts(open_run, refused_untouched):
    run = open_run(10)
    batch = run.next(count=2)
    run.release(batch)
    request = run.report_request(batch, {0: [1.0]})
    answer = refused_untouched(run, run.stubs.trainer.ReportOutcomes, request)
    assert answer.status == "FAILED_PRECONDITION"
    assert "outcomes.slots=0" in answer.details
    assert "the slot is closed" in answer.details


def test_a_reports_request_id_stands_for_one_content(open_run, refused_untouched):
    run = open_run(10)
    batch, other = run.next(count=2), run.next(count=2)
    run.report(batch, {0: [1.0]}, request_id="report")
    for request in (
        run.report_request(batch, {0: [0.0]}, request_id="report"),
        run.report_request(batch, {1: [1.0]}, request_id="report"),
        run.report_request(batch, {0: [1.0]}, request_id="report", policy_step=1),
        run.report_request(batch, {0: [1.0]}, request_id="report", token_counts=[5]),
        run.report_request(other, {0: [1.0]}, request_id="report"),
    ):
        answer = refused_untouched(run, run.stubs.trainer.ReportOutcomes, request)
        assert (answer.status, answer.error) == ("ALREADY_EXISTS", "AlreadyExistsError")
        assert answer.details.startswith("request_id='report': was used with other content")


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


@pytest.mark.parametrize(
    ("name", "step", "timeline", "status", "said"),
    [
        ("", 7, None, "INVALID_ARGUMENT", "checkpoint.name='': must be 1 to 128 bytes"),
        ("n" * 129, 7, None, "INVALID_ARGUMENT", "must be 1 to 128 bytes, is 129"),
        ("c", 6, None, "FAILED_PRECONDITION", "checkpoint.policy_step=6: must be at least 7"),
        ("c", 2**32 - 1, None, "INVALID_ARGUMENT", "checkpoint.policy_step=4294967295: must be"),
        ("c", 10_008, None, "INVALID_ARGUMENT", "policy_step=10008: must be in"),
        ("c", 7, 1, "INVALID_ARGUMENT", "timeline=1: must be 0"),
        ("kept", 8, None, "ALREADY_EXISTS", "checkpoint.name='kept': is the checkpoint at step 7"),
    ],
)
def test_a_bad_checkpoint_is_refused(
    open_run, refused_untouched, name, step, timeline, status, said
):
    run = open_run(20)
    run.play(7)
    run.checkpoint("kept", 7)
    request = tr.CheckpointRequest(
        run_id=run.run_id,
        checkpoint=run_pb2.Checkpoint(name=name, policy_step=step),
        timeline=timeline,
    )
    answer = refused_untouched(run, run.stubs.trainer.Checkpoint, request)
    assert (answer.status, said in answer.details) == (status, True)


def test_a_rollback_to_what_is_not_kept_is_refused_and_says_what_is(open_run, refused_untouched):
    run = open_run(10)

    def rollback(name, request_id="rollback"):
        request = tr.RollbackRequest(run_id=run.run_id, request_id=request_id, checkpoint_name=name)
        return refused_untouched(run, run.stubs.trainer.Rollback, request)

    answer = rollback("c")
    assert (answer.status, answer.error) == ("NOT_FOUND", "NotFoundError")
    assert answer.details == "checkpoint_name='c': is not kept; kept are none"
    run.checkpoint("a", 0)
    run.checkpoint("b", 5)
    assert rollback("c").details == "checkpoint_name='c': is not kept; kept are 'a', 'b'"
    assert rollback("").status == "INVALID_ARGUMENT"
    assert "request_id=''" in rollback("a", "").details


def test_a_rollbacks_request_id_stands_for_one_checkpoint(open_run, refused_untouched):
    run = open_run(10)
    run.checkpoint("a", 0)
    run.checkpoint("b", 5)
    run.rollback("a", "rollback")
    request = tr.RollbackRequest(run_id=run.run_id, request_id="rollback", checkpoint_name="b")
    answer = refused_untouched(run, run.stubs.trainer.Rollback, request)
    assert answer.status == "ALREADY_EXISTS"
    assert "was used to roll back to checkpoint 'a'" in answer.details


@pytest.mark.parametrize(
    ("step", "uri", "said"),
    [
        (3, "", "policy.uri='': must be 1 to 4096 bytes"),
        (3, "u" * 4097, "must be 1 to 4096 bytes, is 4097"),
        (10_001, "/w", "policy_step=10001: must be in [0, 10000]"),
    ],
)
def test_a_bad_policy_is_refused(open_run, refused_untouched, step, uri, said):
    run = open_run(10)
    policy = run_pb2.Policy(policy_step=step, uri=uri)
    request = tr.PublishPolicyRequest(run_id=run.run_id, policy=policy)
    answer = refused_untouched(run, run.stubs.trainer.PublishPolicy, request)
    assert (answer.status, said in answer.details) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize("method", ["NextBatch", "ReportOutcomes", "Rollback"])
def test_bytes_that_are_no_request_are_an_invalid_argument(stubs, refused, method):
    call = stubs.channel.unary_unary(f"/curriculum_api.v1.TrainerService/{method}")
    answer = refused(call, b"\xff\xff\xff")
    assert (answer.status, answer.error) == ("INVALID_ARGUMENT", "InvalidRequestError")
    assert answer.details == f"request: must be an encoded {method}Request"


def test_an_empty_request_is_an_invalid_argument_on_every_call(stubs, refused):
    for module in (tr, pr, op):
        (service,) = module.DESCRIPTOR.services_by_name.values()
        for method in service.methods:
            call = stubs.channel.unary_unary(f"/{service.full_name}/{method.name}")
            if method.name not in ("ListRuns", "CheckStore"):  # all runs
                assert refused(call, b"").status == "INVALID_ARGUMENT", method.name


def test_a_call_that_does_not_exist_is_unimplemented(stubs, refused):
    call = stubs.channel.unary_unary("/curriculum_api.v1.TrainerService/Guess")
    assert refused(call, b"").status == grpc.StatusCode.UNIMPLEMENTED.name


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
