"""What trainers and probers get wrong with reports:
the status, the words, and that nothing of it is applied."""

from __future__ import annotations

import math

import pytest

from curriculum_api.v1 import batch_pb2, run_pb2
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import trainer_service_pb2 as tr

LONG_ID = "x" * 129


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
        assert answer.details.startswith("policy_step=1: must be in [2, 10009]; older windows are ")


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
    assert "the slot is closed: it was released before, in batch 'batch-0'" in answer.details


def test_a_second_training_under_the_same_name_is_told_so(open_run, refused_untouched):
    run = open_run(10)
    first = run.next("default-0", count=2)
    run.report(first, {p.slot: [1.0] * p.attempt_count for p in first.prompts})
    again = run.next("default-0", count=2)
    request = run.report_request(again, {0: [0.0]})
    answer = refused_untouched(run, run.stubs.trainer.ReportOutcomes, request)
    assert answer.details == (
        "outcomes.slots=0: must be given at most 8 attempts; 8 are reported and 1 came; the slot "
        "is closed: it was reported in full before, in batch 'default-0': a training that starts "
        "anew needs a run of its own, a resumed one load_state_dict"
    )


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
