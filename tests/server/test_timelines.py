"""Windows, checkpoints and rollback: the curriculum becomes what it was."""

from __future__ import annotations

import asyncio

import pytest

from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_api.v1 import trainer_service_pb2 as tr
from curriculum_server.engine import lifecycle
from curriculum_server.engine.run import Run


def spans(run):
    return [(w.first_policy_step, w.last_policy_step) for w in run.stats().windows]


def ledger(run):
    """All that a rollback restores: counts, beliefs, windows and servings, without timelines."""
    shown, stats, states = run.get(), run.stats(), run.list()
    shown.timeline = stats.timeline = 0
    return shown, stats, states


def train(run, steps, count=6):
    """Steps with names, and rewards that follow from the prompt and the step: the batches."""
    batches = []
    for step in steps:
        batch = run.next(f"batch-{step}", count=count, step=step)
        rewards = {
            p.slot: [
                float((int(p.prompt.prompt_id[1:]) * 7 + step + i) % 5 < 2)
                for i in range(p.attempt_count)
            ]
            for p in batch.prompts
        }
        run.report(batch, rewards, request_id=f"trained-{step}")
        batches.append(batch)
    return batches


def content(batches):
    return [[p.SerializeToString() for p in batch.prompts] for batch in batches]


def test_windows_close_by_policy_steps(open_run):
    run = open_run(40, window_steps=3)
    train(run, range(8))
    assert spans(run) == [(0, 0), (1, 3), (4, 6), (7, 7)]
    stats = run.stats()
    assert [w.group_count for w in stats.windows] == [6, 18, 18, 6]
    assert sum(w.attempt_count for w in stats.windows) == stats.attempt_count


def test_steps_may_be_far_apart(open_run):
    run = open_run(40, window_steps=5)
    train(run, [0, 3, 100, 107, 5000])
    assert spans(run) == [(0, 0), (1, 5), (96, 100), (106, 110), (4996, 5000)]
    assert [w.group_count for w in run.stats().windows] == [6] * 5


def test_a_checkpoint_closes_the_window(open_run):
    run = open_run(40, window_steps=5)
    train(run, range(4))
    assert run.checkpoint("a", 3) == [("a", 3)]
    train(run, range(4, 9))
    assert run.checkpoint("b", 9) == [("a", 3), ("b", 9)]
    assert spans(run) == [(0, 0), (1, 3), (4, 8)]
    train(run, [10])
    assert spans(run) == [(0, 0), (1, 3), (4, 8), (9, 10)]
    assert [(c.name, c.policy_step) for c in run.get().checkpoints] == [("a", 3), ("b", 9)]


def test_a_checkpoint_is_idempotent_by_name(open_run):
    run = open_run(10)
    train(run, range(3), count=2)
    run.checkpoint("a", 2)
    before = run.seen()
    assert run.checkpoint("a", 2) == [("a", 2)]
    assert run.seen() == before
    train(run, range(3, 6), count=2)
    assert run.checkpoint("a", 2) == [("a", 2)]


def test_counts_of_before_a_checkpoint_that_arrive_after_it_are_dropped_by_a_rollback(open_run):
    run = open_run(20)
    train(run, range(3), count=4)
    late = run.next("late", count=2, step=2)
    run.release(run.next("other", count=2, step=2))
    run.checkpoint("a", 2)
    attempts = run.stats().attempt_count
    run.report(late, {0: [1.0] * 8})
    assert run.stats().attempt_count == attempts + 8
    run.rollback("a")
    assert run.stats().attempt_count == attempts


def test_a_rollback_restores_every_count_and_clears_the_leases(open_run):
    run = open_run(60, window_steps=3, reward_min=-1.0, pass_threshold=0.5)
    train(run, range(5))
    run.checkpoint("a", 4)
    before = ledger(run)
    train(run, range(5, 12))
    leased = run.next("leased", count=10, step=12)
    run.report(leased, {0: [1.0]})
    answer = run.rollback("a")
    assert (answer.timeline, answer.policy_step) == (1, 4)
    after = ledger(run)
    assert after == before
    assert run.get().timeline == run.stats().timeline == 1
    assert run.stats().leased_prompt_count == 0
    assert len(run.next(count=60, step=5).prompts) == 60


def test_a_repeated_rollback_changes_nothing(open_run):
    run = open_run(40)
    train(run, range(3))
    run.checkpoint("a", 2)
    train(run, range(3, 6))
    first = run.rollback("a", "rollback")
    train(run, range(3, 5))
    before = run.seen()
    assert run.rollback("a", "rollback") == first
    assert run.seen() == before


def test_every_rollback_raises_the_timeline_and_drops_later_checkpoints(open_run):
    run = open_run(40)
    for step, name in enumerate("abc"):
        train(run, [step])
        run.checkpoint(name, step)
    assert run.rollback("b").timeline == 1
    assert [c.name for c in run.get().checkpoints] == ["a", "b"]
    assert run.rollback("b").timeline == 2
    assert run.rollback("a").timeline == 3
    assert [c.name for c in run.get().checkpoints] == ["a"]
    assert run.stats().group_count == 6
    train(run, [1])
    assert run.checkpoint("b", 1) == [("a", 0), ("b", 1)]


def test_calls_of_an_older_timeline_are_told_to_resume(open_run, refused):
    run = open_run(40)
    train(run, range(3))
    run.checkpoint("a", 2)
    old = run.next("old", count=2, step=3)
    probes = run.probes("old-probes", count=2, step=3).batch
    run.rollback("a")
    before = run.seen()
    trainer = run.stubs.trainer
    mark = run_pb2.Checkpoint(name="b", policy_step=3)
    names = {"run_id": run.run_id, "batch_id": "old", "timeline": 0}
    for call, request in (
        (trainer.ReportOutcomes, run.report_request(old, {0: [1.0]})),
        (trainer.NextBatch, run.next_request("next", step=3, timeline=0)),
        (trainer.NextBatch, run.next_request("old", count=2, step=3, timeline=0)),
        (trainer.ReleaseBatch, tr.ReleaseBatchRequest(**names)),
        (trainer.Checkpoint, tr.CheckpointRequest(
            run_id=run.run_id, checkpoint=mark, timeline=0)),
    ):  # fmt: skip
        answer = refused(call, request)
        assert (answer.status, answer.error) == ("ABORTED", "ConflictError")
        assert answer.details == (
            "timeline=0: must be 1; the run was rolled back to checkpoint 'a' at step 2: "
            "resume from there"
        )
    with pytest.raises(Exception, match="resume from there"):
        run.report_probes(probes, {0: [1.0]})
    assert run.seen() == before


def test_a_report_that_a_rollback_overtakes_opens_no_window(
    open_run, start_server, refused, monkeypatch
):
    """A window at its step would take what is sampled at all steps before it."""
    run = open_run(20)
    train(run, [0], count=2)
    run.checkpoint("a", 0)
    before = spans(run)
    batch = run.next("ahead", count=2, step=0)
    other, change_layout, overtaken = run.through(start_server().stubs), Run.change_layout, []

    async def change_behind_a_rollback(self, *arguments):
        if not overtaken:
            overtaken.append(True)
            await asyncio.to_thread(other.rollback, "a")
        return await change_layout(self, *arguments)

    monkeypatch.setattr(Run, "change_layout", change_behind_a_rollback)
    request = run.report_request(batch, {0: [1.0]}, policy_step=50)
    assert refused(run.stubs.trainer.ReportOutcomes, request).status == "ABORTED"
    assert overtaken
    assert spans(run) == before


def test_a_report_that_was_counted_before_a_rollback_counts_anew_after_it(open_run):
    run = open_run(20)
    run.checkpoint("start", 0)
    first = run.next("batch", count=2)
    run.report(first, {0: [1.0]}, request_id="report")
    run.rollback("start")
    again = run.next("batch", count=2)
    assert content([again]) == content([first])
    assert not run.report(again, {0: [1.0]}, request_id="report").duplicate
    assert run.stats().attempt_count == 1


@pytest.mark.parametrize("strategy", ["edge", "thompson", "uniform"])
def test_after_a_rollback_the_same_requests_give_the_same_batches(open_run, strategy):
    run = open_run(80, window_steps=3, selection={"strategy": strategy, "rest_steps": 2})
    train(run, range(5))
    run.checkpoint("a", 4)
    first = train(run, range(5, 17))
    end = ledger(run)
    run.rollback("a")
    again = train(run, range(5, 17))
    assert content(again) == content(first)
    assert [batch.timeline for batch in again] == [1] * 12
    assert ledger(run) == end


def test_after_a_rollback_other_batches_may_be_asked_for(open_run):
    run = open_run(80)
    train(run, range(3))
    run.checkpoint("a", 2)
    first = train(run, [3])
    run.rollback("a")
    other = run.next("another-name", count=6, step=3)
    assert content([other]) != content(first)
    run.report(other, {0: [1.0] * 8})


def test_a_rollback_frees_the_batches_that_were_fetched_ahead_of_the_checkpoint(open_run):
    run = open_run(40)
    train(run, range(3))
    ahead = run.next("ahead", count=6, step=3)
    run.checkpoint("a", 2)
    before = run.stats().attempt_count
    run.report(ahead, {0: [1.0] * 8})
    run.rollback("a")
    assert (run.stats().attempt_count, run.get().policy_step) == (before, 2)
    assert run.stats().leased_prompt_count == 0
    assert len(run.next("other", count=40, step=3).prompts) == 40


@pytest.mark.parametrize("other_server", [False, True])
def test_a_trainer_that_fetches_ahead_gets_the_same_batches_again(
    open_run, start_server, other_server
):
    """It asks for step n + 1 before it reports step n, so at a checkpoint one batch is out."""
    run = open_run(60, window_steps=2, selection={"rest_steps": 1})

    def train_ahead(first, last, ahead):
        batches = []
        for step in range(first, last + 1):
            batch, ahead = ahead, run.next(f"ahead-{step + 1}", count=6, step=step + 1)
            run.report(
                batch,
                {p.slot: [float((p.slot + step) % 3 == 0)] * 8 for p in batch.prompts},
                request_id=f"trained-{step}",
            )
            batches.append(batch)
        return batches, ahead

    _, ahead = train_ahead(0, 5, run.next("ahead-0", count=6))
    run.checkpoint("a", 5)
    first, _ = train_ahead(6, 12, ahead)
    run.rollback("a")
    if other_server:
        run = run.through(start_server().stubs)
    again = run.next("ahead-6", count=6, step=6)
    assert run.stats().leased_prompt_count == 6
    second, _ = train_ahead(6, 12, again)
    assert content(second) == content(first)
    assert content([run.next("ahead-6", count=6, step=6)]) == content([again])


def test_a_batch_fetched_ahead_is_composed_anew_when_others_took_its_prompts(open_run):
    run = open_run(10)
    ahead = run.next("ahead", count=4, step=1)
    run.checkpoint("a", 0)
    run.rollback("a")
    taken = {p.prompt.prompt_id for p in run.next("other", count=6, step=1).prompts}
    again = {p.prompt.prompt_id for p in run.next("ahead", count=4, step=1).prompts}
    assert len(again) == 4
    assert again.isdisjoint(taken)
    assert again != {p.prompt.prompt_id for p in ahead.prompts}


def test_a_batch_that_another_server_leases_beside_a_checkpoint_is_in_it(
    open_run, start_server, monkeypatch
):
    run = open_run(40)
    other, leased = run.through(start_server().stubs), []
    read = lifecycle.load_leased

    async def read_and_be_overtaken(redis, keys):
        found = await read(redis, keys)
        if not leased:
            leased.append(await asyncio.to_thread(other.next, "late", 6))
        return found

    monkeypatch.setattr(lifecycle, "load_leased", read_and_be_overtaken)
    run.checkpoint("a", 0)
    run.rollback("a")
    assert content([run.next("late", 6)]) == content(leased)


def test_a_checkpoint_may_not_go_back(open_run, refused):
    run = open_run(10)
    run.checkpoint("a", 7)
    mark = run_pb2.Checkpoint(name="b", policy_step=6)
    request = tr.CheckpointRequest(run_id=run.run_id, checkpoint=mark)
    answer = refused(run.stubs.trainer.Checkpoint, request)
    assert answer.status == "FAILED_PRECONDITION"
    assert answer.details == (
        "checkpoint.policy_step=6: must be at least 7, the step of checkpoint 'a'"
    )


def test_a_checkpoint_can_be_let_go(open_run, refused):
    run = open_run(40)
    for step, name in enumerate("abc"):
        train(run, [step])
        run.checkpoint(name, step)
    before = run.stats()
    assert run.delete_checkpoint("b") == [("a", 0), ("c", 2)]
    assert run.delete_checkpoint("b") == [("a", 0), ("c", 2)]
    assert run.delete_checkpoint("c") == [("a", 0)]
    assert run.stats() == before
    request = tr.RollbackRequest(run_id=run.run_id, request_id="r", checkpoint_name="c")
    assert refused(run.stubs.trainer.Rollback, request).status == "NOT_FOUND"
    late = run.next("late", count=2, step=2)
    run.report(late, {0: [1.0]})
    assert spans(run)[-1][0] == 3  # what a checkpoint closed stays closed
    run.rollback("a")
    assert run.stats().group_count == 6


def test_a_rollback_forgets_a_policy_of_the_steps_it_drops(open_run):
    run = open_run(10)
    run.publish(2, "/weights/2")
    run.checkpoint("a", 2)
    run.publish(9, "/weights/9")
    run.rollback("a")
    assert run.get().policy.policy_step != 9
    run.publish(3, "/weights/3b")
    assert run.get().policy == run_pb2.Policy(policy_step=3, uri="/weights/3b")


def test_prompts_that_were_added_stay_after_a_rollback(open_run):
    run = open_run(4)
    run.checkpoint("a", 0)
    run.add([prompt_pb2.Prompt(prompt_id="new", domain="new")])
    run.rollback("a")
    assert run.get().prompt_count == 5
    assert len(run.next(count=5, step=1).prompts) == 5


def test_of_many_checkpoints_the_newest_are_kept(open_run, refused):
    run = open_run(2)
    for step in range(65):
        run.checkpoint(f"c{step}", step)
    request = tr.RollbackRequest(run_id=run.run_id, request_id="r", checkpoint_name="c0")
    answer = refused(run.stubs.trainer.Rollback, request)
    assert (answer.status, "'c0': is not kept" in answer.details) == ("NOT_FOUND", True)
    assert run.rollback("c7").policy_step == 7
    assert len(run.get().checkpoints) == 7
