"""What is asked for in the background, and everything that can come between."""

from __future__ import annotations

import os
import pickle

import pytest

from curriculum_client import ConflictError, Feed, InvalidRequestError
from curriculum_client.testing import FakeCurriculum
from tests.client.feeding import asked, attempts_of, ids, run_script, score, through_json

FORKING = """
import os, sys
from curriculum_client import Feed, TrainerClient
feed = Feed(TrainerClient(sys.argv[1], "fake", timeout_s=10, retry_s=20), 4)
batch = feed.next_batch()
leases = [served.lease for served in batch for _ in range(served.attempt_count)]
feed.report(leases, [1.0] * len(leases), policy_step=3)
child = os.fork()
os.write(1, (" ".join(served.prompt_id for served in feed.next_batch()) + os.linesep).encode())
if child == 0:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def is_fetched(feed):
    """Once it is; asking for the state waits for it."""
    return feed.state_dict()


def test_a_copy_is_given_what_its_original_had_fetched(make_feed):
    feed = make_feed()
    score(feed, feed.next_batch())
    is_fetched(feed)
    copy = pickle.loads(pickle.dumps(feed))
    assert ids(copy.next_batch()) == ids(feed.next_batch())


def test_a_failed_request_is_repeated_with_its_step(make_feed, fake):
    feed = make_feed()
    batch = feed.next_batch()
    fake.fail_next(method="NextBatch", is_applied=True)
    score(feed, batch, policy_step=0)
    is_fetched(feed)
    feed.policy_step = 1
    feed.next_batch()
    assert asked(fake) == [("default-0", 0), ("default-1", 0)]


def test_a_batch_from_before_a_rollback_is_not_served(make_feed):
    feed = make_feed()
    feed.client.checkpoint("start", 0)
    score(feed, feed.next_batch())
    is_fetched(feed)
    feed.client.rollback("start")
    assert feed.next_batch()[0].timeline == 1


def test_a_pool_that_was_dry_in_the_background_is_asked_again_without_a_pause(
    make_client, monkeypatch
):
    pauses = []
    monkeypatch.setattr("curriculum_client._feed.time.sleep", pauses.append)
    with FakeCurriculum(["1 + 1", "2 + 2"], group_size=4) as fake:
        feed, other = Feed(fake.client(), 1), fake.client(consumer="other")
        first, _ = feed.next_batch(), feed.next_batch()
        leases, rewards = attempts_of(first)
        feed.client.report_attempts(leases, rewards, policy_step=0)
        held = other.next_batch(1, policy_step=0)
        feed.settle(leases)
        is_fetched(feed)
        other.release(held)
        assert len(feed.next_batch()) == 1
    assert pauses == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_for_what_is_on_its_way(fake):
    fake.delay_s = 0.5  # long enough for the fork to come first
    said = run_script(FORKING, fake.target)
    assert said == [" ".join(ids(fake.batches[1]))] * 2
    assert asked(fake) == [("default-0", 0), ("default-1", 3)]


def test_a_rank_that_closes_leaves_the_others_their_leases(make_feed, make_client):
    ranks = [make_feed(client=make_client(), rank=rank, world_size=2) for rank in range(2)]
    shares = [rank.next_batch() for rank in ranks]
    ranks[0].close()
    assert score(ranks[1], shares[1]).attempt_count == 8


def test_ranks_that_have_all_ended_give_back_what_was_fetched_ahead(make_feed, make_client, fake):
    feed = make_feed(client=make_client(reporter="0"), reporter_count=2)
    feed.next_batch()
    feed.close(ranks_ended=True)
    assert fake.unreported == []


def test_a_batch_that_is_too_small_to_share_is_given_back(monkeypatch):
    monkeypatch.setattr("curriculum_client._feed.EMPTY_POOL_WAIT_S", 0.0)
    with FakeCurriculum(["1 + 1"], group_size=4) as fake:
        feed = Feed(fake.client(), 4, rank=0, world_size=2)
        with pytest.raises(RuntimeError, match="nothing to serve"):
            feed.next_batch()
        assert fake.unreported == []


def test_processes_that_cannot_be_told_apart_are_refused(make_feed, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InvalidRequestError, match="reporter_count=2: each process needs"):
        make_feed(reporter_count=2)
    monkeypatch.setenv("RANK", "1")
    assert make_feed(reporter_count=2)


def test_attempts_that_the_trainer_does_not_make_are_warned_of_once(make_feed, caplog):
    feed = make_feed(attempts_per_prompt=2)
    for _ in range(2):
        feed.next_batch()
    assert len([r for r in caplog.records if "attempts left over" in r.message]) == 1


@pytest.mark.parametrize(
    "name", ["prompt_count", "reporter_count", "attempts_per_prompt", "world_size"]
)
def test_numbers_that_cannot_be_are_refused_at_once(make_client, name):
    with pytest.raises(InvalidRequestError, match=f"{name}=0: must be at least 1"):
        Feed(make_client(), **{"prompt_count": 4, name: 0})


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"client": None, "policy_step": 0, "policy_steps": []},
        {"client": {}, "policy_step": 0, "policy_steps": [0.5]},
    ],
)
def test_what_is_no_state_is_refused(make_feed, state):
    with pytest.raises(InvalidRequestError, match="state"):
        make_feed().load_state_dict(state)


def test_what_was_sent_beside_a_refused_batch_is_settled(make_feed, fake):
    feed = make_feed(prefetch=False)
    first, second = feed.next_batch(), feed.next_batch()
    feed.client.checkpoint("both", 0)
    feed.client.rollback("both")
    with pytest.raises(ConflictError):
        score(feed, [*first, *second])
    assert through_json(feed)["policy_steps"] == []
