"""What callers get wrong with checkpoints, policies and calls as such:
the status, the words, and that nothing of it is applied."""

from __future__ import annotations

import grpc
import pytest

from curriculum_api.v1 import batch_pb2, run_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import trainer_service_pb2 as tr

LONG_ID = "x" * 129


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
        assert answer.details.startswith("run_id='no-such-run': there is no such run")


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
