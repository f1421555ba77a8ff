"""Feeds and their clients when the service goes away, and when it is asked much."""

from __future__ import annotations

import pickle
import threading
import time

import pytest

from curriculum_client import ConflictError, NotFoundError
from curriculum_client.testing import FakeCurriculum
from tests.client.feeding import asked, attempts_of, ids, score


def test_equal_rows_count_however_many_others_lie_between():
    """More than the client keeps numberings of, which it must not begin again."""
    count = 2100
    with FakeCurriculum(map(str, range(count)), group_size=2) as fake, fake.client() as client:
        batch = client.next_batch(count, policy_step=0)
        for _ in range(2):
            for served in batch:
                client.report_attempts([served.lease], [1.0], policy_step=0)
        assert sum(fake.attempts.values()) == 2 * count


def test_a_fallback_that_was_drawn_in_the_background_gives_way_to_the_service(
    make_feed, make_client, fake
):
    feed = make_feed(client=make_client(on_unavailable="uniform"))
    batch = feed.next_batch()
    fake.fail_next(method="NextBatch")
    score(feed, batch)
    feed.state_dict()  # waits for it
    assert {served.reason for served in feed.next_batch()} != {"uniform-fallback"}


def test_a_report_that_is_kept_is_kept_also_where_attempts_are_left_over(make_feed, fake):
    feed = make_feed(attempts_per_prompt=2, prefetch=False)
    batch = feed.next_batch()
    fake.fail_next(2)  # the report, and giving back what is left
    assert feed.report(*attempts_of(batch, 2)) is None
    feed.client.flush()
    assert sum(fake.attempts.values()) == 8


def test_a_kept_report_that_is_refused_takes_no_other_with_it(make_feed, fake):
    feed = make_feed(prefetch=False)
    first, second = feed.next_batch(), feed.next_batch()
    fake.fail_next(method="ReportOutcomes")
    assert score(feed, first) is None
    fake.fail_next(error=NotFoundError, method="ReportOutcomes")
    with pytest.raises(NotFoundError, match="its buffered report was refused"):
        score(feed, second)
    assert sorted(fake.attempts) == sorted(ids(second))


def test_attempts_without_a_channel_are_given_back(make_feed, fake):
    feed = make_feed(prefetch=False)
    leases, rewards = attempts_of(feed.next_batch())
    feed.report(leases, rewards, channels={"style": [None, *[1.0] * (len(leases) - 1)]})
    assert fake.unreported == []


def test_nothing_to_report_is_no_error(make_feed):
    assert make_feed().report([], [], policy_step=[]).attempt_count == 0


def test_a_batch_that_comes_after_control_c_is_the_next(make_feed, monkeypatch):
    def interrupted(_futures):
        raise KeyboardInterrupt

    feed = make_feed()
    score(feed, feed.next_batch())
    with monkeypatch.context() as patched:
        patched.setattr("curriculum_client._lookahead.wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt):
            feed.next_batch()
    assert feed.next_batch()[0].batch_id == "default-1"


def test_a_copy_that_is_made_while_a_batch_arrives_gets_it_once(make_feed, fake):
    feed = make_feed()
    batch = feed.next_batch()
    fake.delay_s = 0.2
    score(feed, batch)
    copy = pickle.loads(pickle.dumps(feed))
    fake.delay_s = 0.0
    again = [[feed.next_batch()[0].batch_id for _ in range(2)] for feed in (copy, feed)]
    assert again == [["default-1", "default-2"]] * 2


def test_a_thread_that_cannot_start_is_no_batch_on_its_way(make_feed, monkeypatch):
    def cannot(_thread):
        raise RuntimeError("can't start new thread")

    feed = make_feed()
    batch = feed.next_batch()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", cannot)
        with pytest.raises(RuntimeError, match="new thread"):
            score(feed, batch)
    assert feed.next_batch()[0].batch_id == "default-1"


def test_closing_while_the_service_is_away_waits_for_it_once(make_feed, make_client, fake):
    feed = make_feed(client=make_client(retry_s=0.5))
    for _ in range(8):
        feed.next_batch()
    fake.go_away()
    started_s = time.monotonic()
    feed.close()
    assert time.monotonic() - started_s < 3.0  # for each batch it would be 4


def test_batches_scored_out_of_order_do_not_come_again_and_the_others_do(make_feed, fake):
    feed = make_feed(prefetch=False)
    batches = []
    for step in range(4):
        feed.policy_step = step
        batches.append(feed.next_batch())
    score(feed, batches[1], policy_step=3)
    state = feed.state_dict()
    feed.client.checkpoint("mark", 3)
    again = make_feed(prefetch=False)
    again.load_state_dict(state)
    again.client.rollback("mark")
    served = [ids(again.next_batch()) for _ in range(4)]
    assert served[:3] == [ids(batches[number]) for number in (0, 2, 3)]
    assert asked(fake)[4:] == [
        ("default-0", 0),
        ("default-2", 2),
        ("default-3", 3),
        ("default-4", 3),
    ]


def test_who_meets_anothers_rollback_may_join_it(make_client):
    client, other = make_client(), make_client(consumer="other")
    client.next_batch(1, policy_step=0)
    other.checkpoint("start", 0)
    other.rollback("start")
    with pytest.raises(ConflictError):
        client.next_batch(1, policy_step=0)
    client.rejoin()
    assert client.next_batch(1, policy_step=0).timeline == 1
