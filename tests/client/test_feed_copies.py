"""Feeds that are given the same batches: of ranks, of resumed trainings and of copies."""

from __future__ import annotations

import pickle
from itertools import islice

import pytest

from curriculum_client import InvalidRequestError
from tests.client.feeding import asked, ids, run_script, score, through_json, train

GROUP_SIZE = 4
POOL = 48


# Ranks


def test_ranks_share_every_batch_without_overlap(make_feed, fake):
    ranks = [make_feed(6, rank=rank, world_size=3) for rank in range(3)]
    for step in range(3):
        shares = [rank.next_batch() for rank in ranks]
        assert [len(share) for share in shares] == [2, 2, 2]
        together = [prompt for share in shares for prompt in share]
        assert sorted(ids(together)) == sorted(ids(fake.batches[step]))
        for rank, share in zip(ranks, shares, strict=True):
            score(rank, share, policy_step=step)
    assert sum(fake.attempts.values()) == 3 * 6 * GROUP_SIZE
    assert [batch.batch_id for batch in fake.batches[:3]] == [f"default-{n}" for n in range(3)]
    assert ("ReleaseBatch", "OK") not in fake.calls


def test_shares_of_a_short_batch_are_equal(make_feed, make_client, fake):
    make_client(consumer="other").next_batch(POOL - 3, policy_step=0)
    ranks = [make_feed(4, rank=rank, world_size=2) for rank in range(2)]
    shares = [rank.next_batch() for rank in ranks]
    assert ids([*shares[0], *shares[1]]) == ids(fake.batches[1])[:2]


def test_every_rank_may_go_through_all_and_report_its_part(
    make_feed, make_client, fake, wait_until
):
    ranks = [make_feed(client=make_client(reporter=str(n)), reporter_count=2) for n in range(2)]
    batches = [rank.next_batch() for rank in ranks]
    assert ids(batches[0]) == ids(batches[1])
    score(ranks[0], batches[0][:2])
    wait_until(lambda: len(fake.batches) == 2)  # rank 0 has scored its half
    score(ranks[1], batches[1][2:])
    assert ids(ranks[0].next_batch()) == ids(ranks[1].next_batch()) == ids(fake.batches[1])
    assert sum(fake.attempts.values()) == 4 * GROUP_SIZE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, r"rank=2: must be in \[0, 1\]"),
        ({"rank": -1}, r"rank=-1: must be in \[0, 0\]"),
        ({"world_size": 3}, "prompt_count=4: must be a multiple of world_size=3"),
    ],
)
def test_what_cannot_be_shared_is_refused(make_feed, options, message):
    with pytest.raises(InvalidRequestError, match=message):
        make_feed(4, **options)


# Resuming


def resumed(make_feed, state, mark, **options):
    feed = make_feed(**options)
    feed.load_state_dict(state)
    feed.client.rollback(mark)
    return feed


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("prefetch_after", [True, False])
def test_a_resumed_feed_gets_the_same_batches(make_feed, fake, prefetch, prefetch_after):
    feed = make_feed(prefetch=prefetch)
    train(feed, range(3))
    state = through_json(feed)
    feed.client.checkpoint("three", 3)
    counted = fake.rewards
    expected = train(feed, range(3, 6))
    again = resumed(make_feed, state, "three", prefetch=prefetch_after)
    assert fake.rewards == counted
    assert again.policy_step == 2
    assert train(again, range(3, 6)) == expected


def test_batches_that_were_fetched_ahead_come_again(make_feed, fake):
    feed = make_feed()
    ahead = []
    for step in range(4):  # as one does that looks two ahead
        ahead += [feed.next_batch() for _ in range(3 - len(ahead))]
        score(feed, ahead.pop(0), policy_step=step)
    state = through_json(feed)
    assert len(state["policy_steps"]) == 3  # with the one in the background
    feed.client.checkpoint("four", 4)
    expected = [*map(ids, ahead), ids(feed.next_batch())]
    again = resumed(make_feed, state, "four")
    assert [ids(again.next_batch()) for _ in range(3)] == expected
    assert [step for _, step in asked(fake)[-3:]] == state["policy_steps"]


def test_a_state_taken_while_a_batch_is_on_its_way_knows_it(make_feed, fake):
    feed = make_feed()
    batch = feed.next_batch()
    fake.delay_s = 0.1
    score(feed, batch, policy_step=5)
    state = through_json(feed)  # waits for it
    assert len(fake.batches) == 2
    assert state["policy_steps"] == [5]
    assert state["client"]["sequence"] == [2, [1, 4, 5]]  # its number is open, for this request


def test_a_batch_that_was_begun_is_not_served_again(make_feed, fake):
    feed = make_feed()
    first, second = feed.next_batch(), feed.next_batch()
    score(feed, first[:1])
    feed.client.checkpoint("begun", 0)
    again = resumed(make_feed, through_json(feed), "begun")
    assert ids(again.next_batch()) == ids(second)


def test_a_state_taken_before_the_resumed_batches_came_again_still_has_them(make_feed, fake):
    feed = make_feed()
    [feed.next_batch() for _ in range(3)]
    state = through_json(feed)
    feed.client.checkpoint("start", 0)
    again = resumed(make_feed, state, "start")
    assert through_json(again)["policy_steps"] == state["policy_steps"] == [0, 0, 0]
    batch = again.next_batch()
    assert through_json(again)["policy_steps"] == [0, 0, 0]
    score(again, batch, policy_step=5)
    assert through_json(again)["policy_steps"] == [0, 0]  # one is asked for, one is to be


def test_loading_forgets_what_was_fetched(make_feed, fake, wait_until):
    feed = make_feed()
    state = through_json(feed)
    feed.client.checkpoint("start", 0)
    prompts = iter(feed)
    first = next(prompts)
    feed.load_state_dict(state)
    feed.client.rollback("start")
    assert ids([next(prompts)]) == ids([first])
    assert next(prompts).timeline == 1


def test_loading_waits_for_what_is_on_its_way(make_feed, fake):
    feed = make_feed()
    state = through_json(feed)
    batch = feed.next_batch()
    fake.delay_s = 0.1
    score(feed, batch)
    feed.load_state_dict(state)
    assert len(fake.batches) == 2
    assert feed.state_dict() == state | {"client": state["client"] | {"timeline": 0}}


def test_rolling_back_in_mid_training_twice_serves_the_same(make_feed, fake):
    feed = make_feed()
    train(feed, range(2))
    state = through_json(feed)
    feed.client.checkpoint("two", 2)
    expected = train(feed, [2, 3])
    for _ in range(2):
        feed.load_state_dict(state)
        feed.client.rollback("two")
        assert train(feed, [2, 3]) == expected


def test_a_state_of_another_run_is_refused(make_feed):
    feed = make_feed()
    state = feed.state_dict()
    state["client"]["run_id"] = "code"
    with pytest.raises(InvalidRequestError, match="run_id"):
        feed.load_state_dict(state)


# Processes


def test_a_pickled_feed_asks_for_the_batches_of_its_original(make_feed, fake):
    feed = make_feed(prefetch=False)
    train(feed, range(2))
    copy = pickle.loads(pickle.dumps(feed))
    assert copy.policy_step == 1
    assert ids(copy.next_batch()) == ids(feed.next_batch())
    copy.client.close()


def test_a_feed_pickles_with_the_prompts_that_it_is_to_give(make_feed, fake):
    feed = make_feed()
    next(iter(feed))
    copy = pickle.loads(pickle.dumps(feed))
    assert ids(islice(copy, 3)) == ids(islice(feed, 3)) == ids(fake.batches[0])[1:]
    copy.client.close()


def test_a_feed_pickles_while_a_batch_is_on_its_way(make_feed, fake):
    feed = make_feed()
    batch = feed.next_batch()
    fake.delay_s = 0.3  # longer than pickling takes
    score(feed, batch, policy_step=3)
    copy = pickle.loads(pickle.dumps(feed))
    assert ids(copy.next_batch()) == ids(feed.next_batch())
    assert asked(fake) == [("default-0", 0), ("default-1", 3)]
    copy.client.close()


FORKING = """
import os, sys
from curriculum_client import Feed, TrainerClient
feed = Feed(TrainerClient(sys.argv[1], "fake", timeout_s=10, retry_s=20), 4, prefetch=False)
first = next(iter(feed))
feed.report([first.lease], [1.0], policy_step=3)
child = os.fork()
prompts = [next(iter(feed)).prompt_id for _ in range(4)]
os.write(1, (" ".join(prompts) + os.linesep).encode())
if child == 0:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_goes_on_where_its_parent_does(fake):
    said = run_script(FORKING, fake.target)
    expected = [*ids(fake.batches[0])[1:], ids(fake.batches[1])[0]]
    assert said == [" ".join(expected)] * 2
    assert asked(fake) == [("default-0", 0), ("default-1", 3)]
