"""A server that has not heard of a rollback yet fences off what is from before it all the same."""

from __future__ import annotations

import pytest

from curriculum_api.v1 import trainer_service_pb2 as tr
from curriculum_server.engine import engine


@pytest.fixture
def pair(monkeypatch, open_run, start_server):
    """A run through two servers that read events only when they are asked."""
    monkeypatch.setattr(engine, "FOLLOW_INTERVAL_S", 3600.0)
    one = start_server().stubs
    other = start_server().stubs

    def open_pair(*arguments, **config):
        run = open_run(*arguments, **config)
        return run.through(one), run.through(other)

    return open_pair


def test_a_repeat_of_a_report_that_was_rolled_back_is_no_duplicate(pair, refused):
    one, other = pair(8, selection={"group_size": 2})
    one.checkpoint("a", 0)
    batch = other.next(count=2)
    request = other.report_request(batch, {0: [1.0, 0.0]})
    other.stubs.trainer.ReportOutcomes(request)
    one.rollback("a")
    answer = refused(other.stubs.trainer.ReportOutcomes, request)
    assert answer.status == "ABORTED"


def test_a_report_that_is_too_much_is_told_of_the_rollback(pair, refused):
    one, other = pair(8, selection={"group_size": 2})
    one.checkpoint("a", 0)
    batch = other.next(count=2)
    other.report(batch, {0: [1.0, 0.0]})
    one.rollback("a")
    answer = refused(other.stubs.trainer.ReportOutcomes, other.report_request(batch, {0: [1.0]}))
    assert answer.status == "ABORTED"


def test_a_batch_for_a_step_without_a_window_is_not_made_on_another_timeline(pair, refused):
    one, other = pair(8)
    one.checkpoint("a", 0)
    other.stats()
    one.rollback("a")
    answer = refused(other.stubs.trainer.NextBatch, other.next_request(step=3, timeline=0))
    assert answer.status == "ABORTED"


def test_calls_of_an_older_timeline_are_refused_when_its_checkpoint_is_gone(pair, refused):
    one, _ = pair(8)
    one.checkpoint("a", 0)
    batch = one.next(count=2)
    one.rollback("a")
    one.stubs.trainer.DeleteCheckpoint(
        tr.DeleteCheckpointRequest(run_id=one.run_id, checkpoint_name="a")
    )
    answer = refused(one.stubs.trainer.ReportOutcomes, one.report_request(batch, {0: [1.0]}))
    assert answer.status == "ABORTED"
