"""Batches that get a budget of attempts instead of so many each."""

from __future__ import annotations

import pytest

from curriculum_api.limits import MAX_SLOT_ATTEMPTS
from curriculum_client import AlreadyExistsError, TrainerClient


def counts(batch):
    return [p.attempt_count for p in batch.prompts]


def kind(served):
    """0, 1 or 2: whether the prompt passes never, every other time or always."""
    return int(served.prompt.prompt_id[1:]) % 3


def by_kind(batch):
    """All attempts of the batch."""
    return {
        p.slot: [float(kind(p) > i % 2) for i in range(p.attempt_count)]
        if kind(p) == 1
        else [float(kind(p) == 2)] * p.attempt_count
        for p in batch.prompts
    }


@pytest.mark.parametrize("budget", [8, 9, 31, 32, 100])
def test_the_budget_is_spent_whole_and_no_prompt_gets_fewer_than_two(open_run, budget):
    run = open_run(20, selection={"reach_share": 0.0})
    batch = run.next(count=4, rollout_budget=budget)
    assert len(batch.prompts) == 4
    assert sum(counts(batch)) == budget
    assert min(counts(batch)) >= 2


def test_without_a_budget_each_prompt_gets_a_group(open_run):
    run = open_run(20, selection={"group_size": 5, "reach_share": 0.0})
    assert counts(run.next(count=4)) == [5] * 4


@pytest.mark.parametrize("budget", [2, 3, 7])
def test_a_budget_for_fewer_prompts_serves_fewer(open_run, budget):
    run = open_run(20, selection={"reach_share": 0.0})
    batch = run.next(count=4, rollout_budget=budget)
    assert len(batch.prompts) == budget // 2
    assert sum(counts(batch)) <= budget
    assert min(counts(batch)) >= 2
    # Prompts without attempts are not held back either.
    assert run.stats().leased_prompt_count == len(batch.prompts)


def test_what_is_known_decides_who_gets_more(open_run):
    """A third of the pool never passes, a third always, and a third every other time."""
    run = open_run(30, domains=1, selection={"reach_share": 0.0, "review_share": 0.0})
    for step in range(3):
        batch = run.next(count=30, step=step)
        run.report(batch, by_kind(batch))
    # All are served, so that the choice of prompts plays no part.
    batch = run.next(count=30, step=3, rollout_budget=480)
    given = [[p.attempt_count for p in batch.prompts if kind(p) == k] for k in range(3)]
    never, sometimes, always = (sum(counts) / 10 for counts in given)
    assert never + sometimes + always == pytest.approx(48)
    # A coin is mixed after a few attempts; what is left goes where a pass, or a fail, is rare.
    assert sometimes < 13 < min(never, always)


def test_all_attempts_of_an_uneven_batch_complete_its_groups(open_run):
    run = open_run(30, selection={"reach_share": 0.0})
    for step in range(3):
        batch = run.next(count=6, step=step, rollout_budget=50)
        receipt = run.report(batch, {p.slot: [1.0] * p.attempt_count for p in batch.prompts})
        assert (receipt.attempt_count, receipt.completed_group_count) == (50, 6)
    assert run.stats().leased_prompt_count == 0
    assert run.stats().group_count == 18


def test_a_slot_takes_no_more_than_its_own_attempts(open_run, refused):
    run = open_run(10, selection={"reach_share": 0.0})
    batch = run.next(count=3, rollout_budget=17)
    served = batch.prompts[0]
    request = run.report_request(batch, {0: [1.0] * (served.attempt_count + 1)})
    answer = refused(run.stubs.trainer.ReportOutcomes, request)
    assert answer.status == "FAILED_PRECONDITION"
    assert f"must be given at most {served.attempt_count} attempts" in answer.details


def test_the_same_request_gets_the_same_batch_and_another_budget_is_refused(open_run, refused):
    run = open_run(20)
    request = run.next_request("batch", count=4, rollout_budget=30)
    first = run.stubs.trainer.NextBatch(request).SerializeToString()
    assert run.stubs.trainer.NextBatch(request).SerializeToString() == first
    others = [{"rollout_budget": 31}, {}]
    for fields in others:
        other = run.next_request("batch", count=4, **fields)
        answer = refused(run.stubs.trainer.NextBatch, other)
        assert (answer.status, answer.error) == ("ALREADY_EXISTS", "AlreadyExistsError")


def test_a_budget_holds_for_batches_composed_ahead(open_run):
    """Requests in a row are foreseen; one with another budget, or none, gets what it asks for."""
    run = open_run(60, selection={"group_size": 6, "reach_share": 0.0, "rest_steps": 0})
    budgets = [40, 40, 40, 25, 25, None, None, 40]
    for step, budget in enumerate(budgets):
        fields = {} if budget is None else {"rollout_budget": budget}
        batch = run.next(f"row-{step}", count=5, step=step, **fields)
        assert sum(counts(batch)) == (budget or 30)
        run.report(batch, {p.slot: [1.0] * p.attempt_count for p in batch.prompts})


def test_a_batch_fetched_before_a_checkpoint_comes_back_with_its_attempts(open_run):
    run = open_run(60, selection={"reach_share": 0.0})
    run.play(0)
    ahead = run.next("ahead", count=5, step=1, rollout_budget=43)
    run.checkpoint("a", 0)
    run.play(1)
    run.rollback("a")
    again = run.next("ahead", count=5, step=1, rollout_budget=43)
    assert list(again.prompts) == list(ahead.prompts)
    run.rollback("a")
    other = run.next("ahead", count=5, step=1, rollout_budget=44)
    assert sum(counts(other)) == 44


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (0, f"rollout_budget=0: must be in [2, {3 * MAX_SLOT_ATTEMPTS}]"),
        (1, f"rollout_budget=1: must be in [2, {3 * MAX_SLOT_ATTEMPTS}]"),
        (98_302, "rollout_budget=98302: must be in [2, 98301]"),
        (2**32 - 1, "rollout_budget=4294967295: must be in [2, 98301]"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(open_run, refused_untouched, budget, said):
    run = open_run(10)
    request = run.next_request(count=3, rollout_budget=budget)
    answer = refused_untouched(run, run.stubs.trainer.NextBatch, request)
    assert (answer.status, answer.details) == ("INVALID_ARGUMENT", said)


def test_a_client_asks_for_a_budget_and_reports_every_attempt(open_run, server):
    run = open_run(40, selection={"reach_share": 0.0})
    with TrainerClient(server.address, run_id=run.run_id) as client:
        for step in range(3):
            batch = client.next_batch(5, policy_step=step, rollout_budget=37)
            assert sum(prompt.attempt_count for prompt in batch) == 37
            rewards = {p.prompt_id: [1.0] + [0.0] * (p.attempt_count - 1) for p in batch}
            receipt = client.report(batch, rewards, policy_step=step)
            assert receipt is not None
            assert (receipt.attempt_count, receipt.mixed_group_count) == (37, 5)
        with pytest.raises(AlreadyExistsError):
            client.next_batch(5, policy_step=0, rollout_budget=38, request_id="default-0")
