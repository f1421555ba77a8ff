"""Batches that follow each other, and what became of them."""

from __future__ import annotations

from itertools import islice

import pytest

from curriculum_client import (
    Feed,
    InvalidRequestError,
    NotFoundError,
    StateError,
    StoreUnavailableError,
    TrainerClient,
)
from tests.client.feeding import asked, attempts_of, ids, score, through_json, train

GROUP_SIZE = 4
POOL = 48


def test_batches_follow_each_other_and_rewards_are_counted(feed, fake):
    served = train(feed, range(5))
    assert [len(batch) for batch in served] == [4] * 5
    assert [ids(batch) for batch in fake.batches[:5]] == served
    assert sum(fake.attempts.values()) == 5 * 4 * GROUP_SIZE


def test_iterating_gives_the_prompts_of_the_batches_one_by_one(make_feed, fake):
    feed = make_feed(3)
    one, other = iter(feed), iter(feed)
    prompts = [next(one), next(other), next(one), next(other)]
    assert ids(prompts) == [*ids(fake.batches[0]), ids(fake.batches[1])[0]]
    assert ids(islice(feed, 2)) == ids(fake.batches[1])[1:]


def test_a_budget_reaches_the_service(make_feed):
    batch = make_feed(4, rollout_budget=10).next_batch()
    assert [prompt.attempt_count for prompt in batch] == [3, 3, 2, 2]


# Looking ahead


def test_the_next_batch_comes_in_the_background_once_this_one_is_reported(feed, fake, wait_until):
    batch = feed.next_batch()
    *rest, last = zip(*attempts_of(batch), strict=True)
    feed.report(*zip(*rest, strict=True))
    assert [method for method, _ in fake.calls] == ["NextBatch", "ReportOutcomes"]
    fake.delay_s = 0.05  # of the report, and of the batch that is asked for behind it
    feed.report([last[0]], [last[1]])
    assert len(fake.batches) == 1
    wait_until(lambda: len(fake.batches) == 2)
    assert [m for m, _ in fake.calls[1:]] == ["ReportOutcomes", "ReportOutcomes", "NextBatch"]
    fake.delay_s = 10.0  # of another, were one asked for
    waited_s = feed.waited_s
    assert ids(feed.next_batch()) == ids(fake.batches[1])
    assert feed.waited_s - waited_s < 1.0


def test_batches_that_end_together_are_followed_by_one(feed, fake):
    batches = [feed.next_batch() for _ in range(2)]
    score(feed, [*batches[0], *batches[1]])
    assert ids(feed.next_batch()) == ids(fake.batches[2])
    assert len(fake.batches) == 3


def test_reports_of_a_batch_precede_the_next_request(feed, fake):
    train(feed, range(3))
    methods = [method for method, _ in fake.calls if method != "ReleaseBatch"]
    assert methods[:6] == ["NextBatch", "ReportOutcomes"] * 3


def test_without_prefetch_each_batch_is_asked_for_when_it_is_wanted(make_feed, fake):
    feed = make_feed(prefetch=False)
    train(feed, range(2))
    assert len(fake.batches) == 2
    feed.policy_step = 9
    feed.next_batch()
    assert asked(fake) == [("default-0", 0), ("default-1", 0), ("default-2", 9)]


def test_the_policy_step_is_the_newest_that_was_reported_or_set(make_feed, fake):
    feed = make_feed(prefetch=False)
    batches = [feed.next_batch() for _ in range(3)]
    score(feed, batches[0], policy_step=7)
    score(feed, batches[1], policy_step=5)
    assert feed.policy_step == 7
    score(feed, batches[2])
    assert fake.calls[-1] == ("ReportOutcomes", "OK")
    feed.next_batch()
    assert asked(fake)[-1] == ("default-3", 7)


def test_waiting_is_measured_where_the_caller_waits(feed, fake, wait_until):
    fake.delay_s = 0.1
    batch = feed.next_batch()
    score(feed, batch)
    assert feed.waited_s >= 0.2
    feed.waited_s = 0.0
    wait_until(lambda: len(fake.batches) == 2)
    assert feed.waited_s == 0.0


def test_an_outage_in_the_background_that_is_over_is_not_heard_of(feed, fake, wait_until):
    batch = feed.next_batch()
    fake.fail_next(method="NextBatch")
    score(feed, batch)
    wait_until(lambda: fake.calls[-1] == ("NextBatch", "UNAVAILABLE"))
    assert len(feed.next_batch()) == 4
    assert asked(fake) == [("default-0", 0), ("default-1", 0)]


def test_another_error_in_the_background_is_raised_where_the_batch_is_wanted(feed, fake):
    batch = feed.next_batch()
    fake.fail_next(error=NotFoundError, method="NextBatch")
    score(feed, batch)
    with pytest.raises(NotFoundError, match="injected"):
        feed.next_batch()
    assert len(feed.next_batch()) == 4


def test_a_service_that_is_away_for_a_step_keeps_reports_and_comes_back(feed, fake):
    batch = feed.next_batch()
    fake.fail_next(4)  # the report, once more in the background, and twice at next_batch
    assert score(feed, batch) is None
    assert feed.client.buffered_reports == 1
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            feed.next_batch()
    assert len(feed.next_batch()) == 4
    assert sum(fake.attempts.values()) == 4 * GROUP_SIZE


def test_a_batch_whose_answer_was_lost_in_the_background_is_the_next(feed, fake, wait_until):
    batch = feed.next_batch()
    fake.fail_next(method="NextBatch", is_applied=True)
    score(feed, batch)
    wait_until(lambda: fake.calls[-1] == ("NextBatch", "UNAVAILABLE"))
    assert ids(feed.next_batch()) == ids(fake.batches[1])
    assert len(fake.batches) == 2


# A pool that runs dry


def test_a_pool_that_runs_dry_gives_what_it_has(make_feed, fake):
    feed = make_feed(POOL - 1)
    assert len(feed.next_batch()) == POOL - 1
    assert len(feed.next_batch()) == 1


def test_nothing_to_serve_ends_with_the_reason(make_feed, fake, monkeypatch):
    monkeypatch.setattr("curriculum_client._feed.EMPTY_POOL_WAIT_S", 0.0)
    feed = make_feed(POOL)
    feed.next_batch()
    with pytest.raises(
        StateError, match=rf"1 batches of this .* in flight: 0 of {POOL}: {POOL} pr"
    ):
        feed.next_batch()


def test_prompts_that_others_give_back_end_the_waiting(make_feed, make_client, fake, monkeypatch):
    pauses = []

    def give_back(duration_s):
        pauses.append(duration_s)
        other.release(batch)

    feed, other = make_feed(), make_client(consumer="other")
    batch = other.next_batch(POOL, policy_step=0)
    monkeypatch.setattr("curriculum_client._feed.time.sleep", give_back)
    assert len(feed.next_batch()) == 4
    assert len(pauses) == 1


# Fixed numbers of attempts, and what is not spent


def test_attempts_beyond_what_the_trainer_makes_are_given_back(make_feed, fake, wait_until):
    feed = make_feed(attempts_per_prompt=2, prefetch=False)
    feed.report(*attempts_of(feed.next_batch(), 2))
    assert ("ReleaseBatch", "OK") in fake.calls
    assert fake.unreported == []
    assert set(fake.attempts.values()) == {2}


def test_fewer_attempts_than_the_trainer_makes_are_refused_and_given_back(make_feed, fake):
    feed = make_feed(attempts_per_prompt=8)
    with pytest.raises(InvalidRequestError, match=r"attempts_per_prompt=8: .* is to get 4"):
        feed.next_batch()
    assert fake.unreported == []


def test_attempts_without_a_reward_are_scored_and_given_back(make_feed, fake):
    feed = make_feed(prefetch=False)
    leases, rewards = attempts_of(feed.next_batch())
    feed.report(leases, [None, *rewards[1:]])
    assert fake.unreported == []
    assert sum(fake.attempts.values()) == 4 * GROUP_SIZE - 1


def test_a_batch_that_was_spent_is_not_released(make_feed, fake):
    feed = make_feed(prefetch=False)
    score(feed, feed.next_batch())
    assert [method for method, _ in fake.calls] == ["NextBatch", "ReportOutcomes"]


def test_rows_of_others_are_reported_and_not_settled(make_feed, make_client, fake):
    feed, other = make_feed(), make_client(consumer="other")
    mine, [theirs] = feed.next_batch(), other.next_batch(1, policy_step=0)
    score(feed, [theirs])
    assert len(fake.batches) == 2
    feed.report([None, ""], [1.0, 0.0])
    assert feed.state_dict()["policy_steps"] == [0]
    score(feed, mine)
    assert feed.state_dict()["policy_steps"] == [0]  # of the one that was asked for since


def test_what_others_report_is_settled_by_its_leases(make_feed, make_client, fake, wait_until):
    feed, worker = make_feed(), make_client()
    leases, rewards = attempts_of(feed.next_batch())
    worker.report_attempts(leases, rewards, policy_step=0)
    assert len(fake.batches) == 1
    feed.settle(leases)
    wait_until(lambda: len(fake.batches) == 2)
    assert ("ReleaseBatch", "OK") not in fake.calls


def test_scored_attempts_that_were_not_spent_are_given_back(make_feed, make_client, fake):
    feed, worker = make_feed(prefetch=False), make_client()
    leases, rewards = attempts_of(feed.next_batch())
    worker.report_attempts(leases[:-1], rewards[:-1], policy_step=0)
    feed.settle(leases, [True] * (len(leases) - 1) + [False])
    assert fake.unreported == []


def test_columns_may_be_read_but_once(make_feed, fake):
    feed = make_feed(prefetch=False)
    leases, rewards = attempts_of(feed.next_batch())
    feed.report(
        leases,
        iter(rewards),
        token_counts=(7 for _ in leases),
        channels={"style": (0.5 for _ in leases)},
    )
    assert sum(fake.attempts.values()) == len(leases)
    assert fake.unreported == []


def test_arrays_will_do(make_feed, fake):
    feed = make_feed(prefetch=False)
    leases, rewards = attempts_of(feed.next_batch())
    numpy = pytest.importorskip("numpy")
    counts = numpy.ones(len(rewards), int)
    feed.report(numpy.array(leases), numpy.array(rewards), token_counts=counts)
    assert fake.unreported == []


# The end


def test_closing_gives_back_what_was_not_scored_even_what_is_on_its_way(make_feed, fake):
    feed = make_feed()
    batch, ahead = feed.next_batch(), feed.next_batch()
    score(feed, ahead[:1])
    fake.delay_s = 0.05
    score(feed, batch)
    assert len(fake.batches) == 2
    feed.close()
    assert len(fake.batches) == 3
    assert fake.unreported == []


def test_a_feed_goes_on_after_closing(make_feed, fake):
    with make_feed() as feed:
        feed.next_batch()
    assert len(feed.next_batch()) == 4
    assert asked(fake) == [("default-0", 0), ("default-1", 0)]


def test_closing_while_the_service_is_away_only_warns(make_feed, fake, caplog):
    feed = make_feed()
    feed.next_batch()
    fake.go_away()
    feed.close()
    assert "batch not released batch=default-0" in caplog.text


def test_an_exception_passes_through_and_the_leases_go_back(make_feed, fake):
    def fail():
        with make_feed() as feed:
            feed.next_batch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(fake.batches) == 1
    assert fake.unreported == []


def test_the_oldest_of_many_open_batches_is_forgotten(make_feed, fake, monkeypatch):
    monkeypatch.setattr("curriculum_client._feed.MAX_OPEN_BATCHES", 2)
    feed = make_feed()
    batches = [feed.next_batch() for _ in range(3)]
    assert len(through_json(feed)["policy_steps"]) == 2
    score(feed, batches[0])
    assert sum(fake.attempts.values()) == 4 * GROUP_SIZE


def test_two_feeds_of_one_client_share_its_sequence(make_client, fake):
    client: TrainerClient = make_client()
    first, second = (Feed(client, 4, prefetch=False) for _ in range(2))
    served = [*train(first, [0]), *train(second, [0]), *train(first, [1])]
    assert [ids(batch) for batch in fake.batches] == served
    assert [batch.batch_id for batch in fake.batches] == [f"default-{n}" for n in range(3)]


def test_prompts_of_a_fallback_are_given_and_their_reports_dropped(make_feed, make_client, fake):
    feed = make_feed(client=make_client(on_unavailable="uniform"), prefetch=False)
    score(feed, feed.next_batch())
    fake.fail_next(method="NextBatch")
    batch = feed.next_batch()
    assert {prompt.reason for prompt in batch} == {"uniform-fallback"}
    assert score(feed, batch).attempt_count == 0
    assert feed.state_dict()["policy_steps"] == []
    assert {prompt.reason for prompt in feed.next_batch()} == {"uniform"}
    assert sum(fake.attempts.values()) == 4 * GROUP_SIZE
