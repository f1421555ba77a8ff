"""Reports: additive, partial, late or repeated, and every attempt counted once."""

from __future__ import annotations

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from curriculum_api.v1 import batch_pb2, run_pb2

RESOLUTION = 1 / 2**14
"""Of a reward's position in the run's range, as the ledger keeps it."""


def by_prompt(batch):
    return {p.prompt.prompt_id: p.slot for p in batch.prompts}


def test_a_receipt_says_what_was_counted(open_run):
    run = open_run(10, selection={"group_size": 2})
    batch = run.next(count=4)
    receipt = run.report(batch, {0: [1.0, 0.0], 1: [1.0, 1.0], 2: [0.0, 0.0], 3: [1.0]})
    assert (receipt.attempt_count, receipt.pass_count) == (7, 4)
    assert (receipt.completed_group_count, receipt.mixed_group_count) == (3, 1)
    assert not receipt.duplicate
    stats = run.stats()
    assert (stats.attempt_count, stats.pass_count) == (7, 4)
    assert (stats.group_count, stats.mixed_group_count) == (3, 1)


def test_the_parts_of_a_group_add_up_and_complete_it_once(open_run):
    run = open_run(10, selection={"group_size": 3})
    batch = run.next(count=2)
    parts = [
        ({0: [0.0]}, (0, 0)),
        ({0: [1.0], 1: [1.0]}, (0, 0)),
        ({1: [1.0, 1.0]}, (1, 0)),
        ({0: [0.0]}, (1, 1)),
    ]
    for rewards, completed in parts:
        receipt = run.report(batch, rewards)
        assert (receipt.completed_group_count, receipt.mixed_group_count) == completed
    ids = [p.prompt.prompt_id for p in batch.prompts]
    assert run.counts() == {ids[0]: (3, 1), ids[1]: (3, 3)}
    assert (run.stats().group_count, run.stats().mixed_group_count) == (2, 1)


def test_rows_of_a_report_come_in_any_order(open_run):
    run = open_run(10, selection={"group_size": 2})
    batch = run.next(count=3)
    receipt = run.report(
        batch,
        {},
        slots=[2, 0, 1, 0, 2],
        rewards=[1, 0, 1, 1, 1],
        token_counts=[10, 1, 5, 2, 20],
    )
    assert (receipt.attempt_count, receipt.completed_group_count) == (5, 2)
    ids = [p.prompt.prompt_id for p in batch.prompts]
    assert run.counts() == {ids[0]: (2, 1), ids[1]: (1, 1), ids[2]: (2, 2)}
    tokens = [run.prompt(prompt_id).history[0].token_count for prompt_id in ids]
    assert tokens == [3, 5, 30]


def test_a_repeated_report_is_counted_once(open_run):
    run = open_run(10)
    batch = run.next(count=2)
    request = run.report_request(batch, {0: [1.0] * 8, 1: [0.0] * 3})
    first = run.stubs.trainer.ReportOutcomes(request).receipt
    before = run.seen()
    for _ in range(3):
        again = run.stubs.trainer.ReportOutcomes(request).receipt
        assert again.duplicate
        again.duplicate = False
        assert again == first
    assert run.seen() == before


def test_a_report_sent_many_times_at_once_is_counted_once(open_run):
    run = open_run(10)
    batch = run.next(count=2)
    request = run.report_request(batch, {0: [1.0] * 8, 1: [0.0] * 3})
    with ThreadPoolExecutor(8) as workers:
        answers = list(workers.map(run.stubs.trainer.ReportOutcomes, [request] * 16))
    assert [answer.receipt.duplicate for answer in answers].count(False) == 1
    assert run.stats().attempt_count == 11


def test_a_report_of_a_released_batch_that_was_counted_before_is_a_repeat(open_run):
    run = open_run(10)
    batch = run.next(count=2)
    request = run.report_request(batch, {0: [1.0]})
    run.stubs.trainer.ReportOutcomes(request)
    run.release(batch)
    assert run.stubs.trainer.ReportOutcomes(request).receipt.duplicate


def test_the_same_request_id_on_another_run_is_another_report(open_run):
    for run in (open_run(5), open_run(5)):
        batch = run.next("batch", count=1)
        assert not run.report(batch, {0: [1.0]}, request_id="report").duplicate


def test_reports_from_many_threads_add_exactly(open_run):
    """Against a plain-Python model: every prompt's attempts and passes."""
    run = open_run(300, selection={"group_size": 6})
    batches = [run.next(count=50, step=step % 3) for step in range(6)]
    rng = random.Random(0)
    model = defaultdict(lambda: [0, 0])
    requests = []
    for batch in batches:
        for served in batch.prompts:
            rewards = [float(rng.random() < 0.4) for _ in range(served.attempt_count)]
            counts = model[served.prompt.prompt_id]
            counts[0] += len(rewards)
            counts[1] += int(sum(rewards))
            while rewards:
                size = rng.randint(1, len(rewards))
                part, rewards = rewards[:size], rewards[size:]
                requests.append(run.report_request(batch, {served.slot: part}))
    requests += rng.sample(requests, 60)
    rng.shuffle(requests)
    with ThreadPoolExecutor(12) as workers:
        answers = list(workers.map(run.stubs.trainer.ReportOutcomes, requests))
    assert sum(answer.receipt.duplicate for answer in answers) == 60
    assert run.counts() == {prompt_id: tuple(counts) for prompt_id, counts in model.items()}
    stats = run.stats()
    assert (stats.group_count, stats.leased_prompt_count) == (300, 0)
    assert stats.mixed_group_count == sum(0 < p < n for n, p in model.values())
    assert stats.mixed_group_count == sum(
        a.receipt.mixed_group_count for a in answers if not a.receipt.duplicate
    )
    assert stats.attempt_count == sum(n for n, _ in model.values())


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-5.0, 20.0), (0.0, 1e-3)])
def test_graded_rewards_are_kept_to_the_ledgers_resolution(open_run, low, high):
    run = open_run(3, reward_min=low, reward_max=high, selection={"group_size": 64})
    rng = random.Random(1)
    batch = run.next(count=3)
    rewards = {
        0: [rng.uniform(low, high) for _ in range(64)],
        1: [low] * 63 + [high],
        2: [low + (high - low) * 0.123456] * 5,
    }
    for slot, values in rewards.items():
        run.report(batch, {slot: values[:20]})
        if values[20:]:
            run.report(batch, {slot: values[20:]})
    for prompt_id, slot in by_prompt(batch).items():
        (point,) = run.prompt(prompt_id).history
        exact = sum(rewards[slot]) / len(rewards[slot])
        # Each attempt is rounded by at most half a step, on top of float32's 2**-24.
        bound = (high - low) * RESOLUTION / 2 + max(abs(low), abs(high)) * 2**-22
        assert abs(point.mean_reward - exact) <= bound
        assert point.attempt_count == len(rewards[slot])
        assert point.pass_count == sum(value >= high for value in rewards[slot])


def test_an_attempt_passes_from_the_threshold_on_as_float32_sees_it(open_run):
    run = open_run(1, pass_threshold=0.9, selection={"group_size": 8})
    batch = run.next(count=1)
    receipt = run.report(batch, {0: [0.9, 0.8999999, 0.9000001, 1.0, 0.5, 0.0]})
    assert receipt.pass_count == 3
    (point,) = run.prompt("p0").history
    assert point.mean_reward == pytest.approx(4.2 / 6, abs=RESOLUTION)


def test_rewards_at_the_ends_of_an_odd_range_are_taken(open_run):
    run = open_run(1, reward_min=-0.1, reward_max=0.3, pass_threshold=0.1)
    batch = run.next(count=1)
    assert run.report(batch, {0: [-0.1, 0.3, 0.1, 0.0999999]}).pass_count == 2


def test_tokens_are_summed_and_absent_ones_are_zero(open_run):
    run = open_run(2, selection={"group_size": 4})
    batch = run.next(count=2)
    run.report(batch, {0: [1.0, 0.0]}, token_counts=[7, 100_000])
    run.report(batch, {0: [1.0], 1: [1.0]})
    slots = {slot: prompt_id for prompt_id, slot in by_prompt(batch).items()}
    assert run.prompt(slots[0]).history[0].token_count == 100_007
    assert run.prompt(slots[1]).history[0].token_count == 0


def test_token_counts_saturate_alike_on_every_server(open_run, start_server):
    run = open_run(1, selection={"group_size": 4})
    run.stats()
    batch = run.next(count=1)
    run.report(batch, {0: [1.0, 0.0]}, token_counts=[2**31 - 1, 3])
    shown = run.prompt("p0").history[0].token_count
    assert shown >= 2**31 - 1
    run.report(batch, {0: [1.0, 0.0]}, token_counts=[2**32 - 1, 2**32 - 1])
    most = run.prompt("p0").history[0].token_count
    assert shown < most <= 2**32 - 1
    assert run.through(start_server().stubs).prompt("p0").history[0].token_count == most


def test_declared_channels_are_kept_beside_the_rewards(open_run, raw):
    channels = [
        run_pb2.Channel(name="confidence", min_value=-1, max_value=1),
        run_pb2.Channel(name="entropy", min_value=0, max_value=5),
    ]
    run = open_run(1, channels=channels, selection={"group_size": 4})
    batch = run.next(count=1)

    def values(*numbers):
        return batch_pb2.ChannelValues(values=numbers)

    confidence, entropy = values(-1, 1, 0.5), values(2.5, 5, 0)
    run.report(batch, {0: [1.0, 0.0, 1.0]}, channels={"confidence": confidence, "entropy": entropy})
    run.report(batch, {0: [1.0]}, channels={"entropy": values(1)})
    (name,) = raw.keys(f"cur:{{{run.run_id}}}:w:*:ch:confidence")
    window = name.rsplit(b":ch:")[0]
    kept = {
        channel: int.from_bytes(raw.get(window + b":ch:" + channel)) * RESOLUTION
        for channel in (b"confidence", b"entropy")
    }
    # Sums of positions in the channel's range.
    assert kept[b"confidence"] == pytest.approx(0 + 1 + 0.75, abs=3 * RESOLUTION)
    assert kept[b"entropy"] == pytest.approx(0.5 + 1 + 0 + 0.2, abs=4 * RESOLUTION)


def test_an_outcome_counts_for_the_step_that_made_it(open_run):
    run = open_run(4, window_steps=2, selection={"group_size": 4})
    old = run.next(count=2, step=1)
    new = run.next(count=2, step=5)
    run.report(new, {0: [1.0]})
    run.report(old, {0: [1.0]})  # made at step 1, arrives late
    run.report(old, {1: [1.0]}, policy_step=5)  # made later than it was leased for
    points = {
        (point.first_policy_step, state.prompt_id)
        for state in run.list().prompts
        for point in run.prompt(state.prompt_id).history
    }
    first_of = {prompt.prompt.prompt_id for prompt in old.prompts[:1]}
    windows = {w.first_policy_step: w.attempt_count for w in run.stats().windows}
    assert {prompt_id for first, prompt_id in points if first == 1} == first_of
    assert windows[1] == 1
    assert sum(windows.values()) == 3


def test_the_newest_step_of_a_report_is_the_runs(open_run):
    run = open_run(4)
    batch = run.next(step=2)
    assert run.get().policy_step == 2
    run.report(batch, {0: [1.0]}, policy_step=9)
    assert run.get().policy_step == 9
    run.report(batch, {1: [1.0]}, policy_step=3)
    assert (run.get().policy_step, run.stats().policy_step) == (9, 9)
