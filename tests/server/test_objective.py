"""Runs that judge prompts by graded values: what is counted, and which groups are mixed."""

from __future__ import annotations

import itertools
import random
import struct

import pytest

from curriculum_api.v1 import batch_pb2, run_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_server.engine import engine
from curriculum_server.engine.config import RunConfig
from curriculum_server.store import columns
from tests.server.driving import RunDriver

SCALE = 1 << 14
WEIGHTS = {"reward": 0.7, "explanation": 0.3}
EXPLANATION = run_pb2.Channel(name="explanation", min_value=0, max_value=10)
ENTROPY = run_pb2.Channel(name="entropy", min_value=-2, max_value=2)


@pytest.fixture
def graded(open_run):
    """A run of groups of 4 whose objective is seven parts reward, three parts explanation."""

    def make(count=8, **config):
        defaults = {"objective": WEIGHTS, "channels": [EXPLANATION, ENTROPY]}
        selection = {"group_size": 4, "reach_share": 0.0} | config.pop("selection", {})
        return open_run(count, selection=selection, **(defaults | config))

    return make


@pytest.fixture
def sums_of(raw):
    """A column of a run over all its windows, by prompt_id; prompts without counts left out."""

    def read(run, name):
        sums = {}
        for key in raw.scan_iter(match=f"cur:{{{run.run_id}}}:w:*:{name}", count=10_000):
            blob = raw.get(key)
            for index, (cell,) in enumerate(struct.iter_unpack(">I", blob)):
                sums[f"p{index}"] = sums.get(f"p{index}", 0) + cell
        return {prompt_id: cell for prompt_id, cell in sums.items() if cell}

    return read


def request_of(run, batch, groups, **fields):
    """A report of (reward, explanation) pairs by slot."""
    rewards = {slot: [reward for reward, _ in rows] for slot, rows in groups.items()}
    values = [explanation for rows in groups.values() for _, explanation in rows]
    channels = {"explanation": batch_pb2.ChannelValues(values=values)}
    return run.report_request(batch, rewards, channels=channels, **fields)


def report(run, batch, groups, **fields):
    request = request_of(run, batch, groups, **fields)
    return run.stubs.trainer.ReportOutcomes(request).receipt


def prompt_in(batch, slot):
    return batch.prompts[slot].prompt.prompt_id


def objective(reward, explanation):
    return 0.7 * reward + 0.03 * explanation


# What is counted


def test_the_mean_and_the_square_of_the_objective_are_kept(graded, sums_of):
    run = graded()
    batch = run.next(count=2)
    rows = {0: [(1.0, 5.0), (0.25, 10.0)], 1: [(0.0, 2.5)]}
    receipt = report(run, batch, rows)
    assert (receipt.attempt_count, receipt.pass_count) == (3, 1)
    expected, squares = {}, {}
    for slot, attempts in rows.items():
        values = [objective(*attempt) for attempt in attempts]
        expected[prompt_in(batch, slot)] = sum(round(y * SCALE) for y in values)
        squares[prompt_in(batch, slot)] = sum(round(y * y * SCALE) for y in values)
    assert round(objective(1.0, 5.0), 12) == 0.85  # as the contract says
    assert sums_of(run, "objective") == expected
    assert sums_of(run, "objective_sq") == squares
    assert run.counts() == {prompt_in(batch, 0): (2, 1), prompt_in(batch, 1): (1, 0)}


def test_only_the_proportions_of_the_weights_matter(graded, sums_of):
    groups = {0: [(0.3, 7.0), (0.9, 1.0)], 1: [(0.45, 3.3)]}
    seen = []
    for weight, other in ((0.7, 0.3), (7.0, 3.0), (7e-300, 3e-300), (1.4e308, 6e307)):
        weights = {"reward": weight, "explanation": other}
        run = graded(objective=weights)
        report(run, run.next("batch", count=2), groups)
        seen.append((sums_of(run, "objective"), sums_of(run, "objective_sq")))
        assert dict(run.get().config.objective) == weights
    assert seen[0][0]
    assert all(sums == seen[0] for sums in seen)


def test_values_are_placed_in_their_declared_ranges(graded, sums_of):
    run = graded(
        objective={"reward": 1.0, "entropy": 1.0}, reward_min=-1.0, reward_max=3.0, count=1
    )
    batch = run.next(count=1)
    channels = {"entropy": batch_pb2.ChannelValues(values=[-2.0, 2.0, 1.0])}
    run.report(batch, {0: [-1.0, 3.0, 1.0]}, channels=channels)
    # Positions (0, 0), (1, 1) and (1/2, 3/4).
    assert sums_of(run, "objective") == {"p0": 1.625 * SCALE}
    assert sums_of(run, "objective_sq") == {"p0": (1 + 0.625**2) * SCALE}


ULP = 2.0**-23
"""Between 1 and the next float32."""


@pytest.mark.parametrize(
    ("low", "high", "top"),
    [(0.1, 0.7, 1.0), (1 + 0.4 * ULP, 1 + 1.4 * ULP, 0.6), (1 - 0.2 * ULP, 1 + 0.6 * ULP, 1.0)],
)
def test_a_value_beside_an_end_that_is_no_float32_has_an_objective_in_range(
    graded, sums_of, low, high, top
):
    odd = run_pb2.Channel(name="odd", min_value=low, max_value=high)
    run = graded(objective={"odd": 3.0}, channels=[odd], count=2)
    batch = run.next(count=2)
    channels = {"odd": batch_pb2.ChannelValues(values=[low, low, high, high])}
    run.report(batch, {0: [1.0, 1.0], 1: [0.0, 0.0]}, channels=channels)
    bottom = round(max(0.0, (1 - low) / (high - low)) * SCALE) if low > 0.5 else 0
    sums = {prompt_in(batch, 0): 2 * bottom, prompt_in(batch, 1): 2 * round(top * SCALE)}
    assert sums_of(run, "objective") == {name: n for name, n in sums.items() if n}
    assert max(sums_of(run, "objective_sq").values()) <= 2 * SCALE


def test_probes_count_towards_the_objective(graded, sums_of):
    run = graded(objective={"reward": 1.0})
    batch = run.probes(count=1).batch
    run.report_probes(batch, {0: [0.5, 0.25]})
    assert sums_of(run, "objective") == {prompt_in(batch, 0): 0.75 * SCALE}


@pytest.mark.parametrize("given", [{}, {"entropy": [0.0, 1.0]}])
def test_an_attempt_without_a_channel_of_the_objective_is_refused_by_name(
    graded, refused_untouched, given
):
    run = graded()
    batch = run.next(count=1)
    channels = {name: batch_pb2.ChannelValues(values=rows) for name, rows in given.items()}
    request = run.report_request(batch, {0: [1.0, 0.0]}, channels=channels)
    answer = refused_untouched(run, run.stubs.trainer.ReportOutcomes, request)
    assert (answer.status, answer.error) == ("INVALID_ARGUMENT", "InvalidRequestError")
    assert answer.details.startswith("outcomes.channels[explanation]: must be there")


def test_a_channel_that_the_objective_does_not_name_may_be_left_out(graded):
    run = graded()
    assert report(run, run.next(count=1), {0: [(1.0, 1.0)]}).attempt_count == 1


def test_a_run_without_an_objective_has_no_such_columns(graded, raw):
    run = graded(objective={})
    run.report(run.next(count=2), {0: [0.5, 1.0], 1: [0.25]})
    names = [key.decode() for key in raw.scan_iter(match=f"cur:{{{run.run_id}}}:w:*")]
    assert names
    assert not [name for name in names if "objective" in name]


# Which groups are mixed


MIXED = {
    "graded rewards without a pass": [(0.1, 5.0), (0.2, 5.0), (0.3, 5.0), (0.4, 5.0)],
    "explanations alone": [(1.0, 5.0), (1.0, 5.0), (1.0, 5.5), (1.0, 5.0)],
    "the last alone": [(0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 1.0)],
    "the first alone": [(0.5, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)],
}
EQUAL = {
    "all at the bottom": [(0.0, 0.0)] * 4,
    "all at the top": [(1.0, 10.0)] * 4,
    "all in between": [(0.4, 3.0)] * 4,
    "within the resolution": [(0.5, 5.0), (0.5 + 1e-6, 5.0), (0.5, 5.0), (0.5, 5.0)],
}


@pytest.mark.parametrize("case", [*MIXED, *EQUAL])
@pytest.mark.parametrize("sizes", [(4,), (1, 3), (3, 1), (2, 2), (1, 1, 1, 1)])
def test_a_group_is_mixed_if_its_attempts_differ_in_the_objective(graded, case, sizes):
    run = graded()
    batch = run.next(count=1)
    rows = iter((MIXED | EQUAL)[case])
    receipts = [report(run, batch, {0: list(itertools.islice(rows, n))}) for n in sizes]
    assert [r.completed_group_count for r in receipts] == [0] * (len(sizes) - 1) + [1]
    assert [r.mixed_group_count for r in receipts[:-1]] == [0] * (len(sizes) - 1)
    assert receipts[-1].mixed_group_count == (case in MIXED)
    stats = run.stats()
    assert (stats.group_count, stats.mixed_group_count) == (1, case in MIXED)


def test_a_pass_and_a_fail_of_the_same_objective_are_no_mixed_group(graded):
    run = graded(objective={"reward": 1.0, "explanation": 1.0})
    receipt = report(run, run.next(count=1), {0: [(1.0, 0.0), (0.0, 10.0)] * 2})
    assert (receipt.pass_count, receipt.mixed_group_count) == (2, 0)


def test_without_an_objective_graded_rewards_are_mixed_by_their_passes(graded):
    run = graded(objective={})
    batch = run.next(count=2)
    receipt = run.report(batch, {0: [0.1, 0.2, 0.3, 0.4], 1: [0.1, 1.0, 0.1, 0.1]})
    assert (receipt.completed_group_count, receipt.mixed_group_count) == (2, 1)


def test_mixed_groups_are_the_same_whatever_way_their_attempts_come(graded, start_server):
    """Shuffled over slots, reports and two servers; against the values themselves."""
    rng = random.Random(1)
    run = graded(40)
    other = run.through(start_server().stubs)
    batch = run.next(count=30)
    values = {
        p.slot: [(rng.choice([0.0, 0.5]), rng.choice([0.0, 5.0])) for _ in range(p.attempt_count)]
        for p in batch.prompts
    }
    for slot in range(10):
        values[slot] = [values[slot][0]] * len(values[slot])
    rows = [(slot, value) for slot, given in values.items() for value in given]
    rng.shuffle(rows)
    completed = mixed = 0
    while rows:
        piece = [rows.pop() for _ in range(min(len(rows), rng.randint(1, 9)))]
        groups = {}
        for slot, value in piece:
            groups.setdefault(slot, []).append(value)
        receipt = report(rng.choice([run, other]), batch, groups)
        completed += receipt.completed_group_count
        mixed += receipt.mixed_group_count
    expected = sum(len({objective(*v) for v in given}) > 1 for given in values.values())
    assert 5 < expected <= 20
    assert (completed, mixed) == (30, expected)
    assert (run.stats().group_count, run.stats().mixed_group_count) == (30, expected)


def test_a_group_of_a_batch_that_was_released_is_not_completed(graded):
    run = graded()
    batch = run.next(count=2)
    report(run, batch, {0: [(0.1, 1.0), (0.2, 1.0)]})
    assert run.release(batch) == 2
    assert run.stats().group_count == 0
    report(run, run.next("again", count=8), {slot: [(0.5, 1.0)] * 4 for slot in range(8)})
    assert (run.stats().group_count, run.stats().mixed_group_count) == (8, 0)


# The columns live as the others do


def play(run, step, rng):
    batch = run.next(f"step-{step}", count=4, step=step)
    report(
        run,
        batch,
        {p.slot: [(rng.random(), 10 * rng.random()) for _ in range(4)] for p in batch.prompts},
        request_id=f"report-{step}",
    )


def both(sums_of, run):
    return sums_of(run, "objective"), sums_of(run, "objective_sq")


def test_merging_windows_loses_nothing(graded, sums_of, raw, wait_until):
    run, rng = graded(window_steps=1), random.Random(2)
    for step in range(6):
        play(run, step, rng)
    before = both(sums_of, run)
    for step in range(6, 30):
        run.next(count=1, step=step)  # opens windows, and counts nothing
        run.stats()

    def windows():
        return len(list(raw.scan_iter(match=f"cur:{{{run.run_id}}}:w:*:objective", count=10_000)))

    wait_until(lambda: windows() <= 3)
    assert both(sums_of, run) == before
    assert sum(before[0].values()) > 0


def test_a_rollback_takes_back_what_was_counted_since(graded, sums_of):
    run, rng = graded(window_steps=1), random.Random(3)
    play(run, 0, rng)
    run.checkpoint("a", 0)
    before = both(sums_of, run)
    for step in (1, 2, 3):
        play(run, step, rng)
    assert both(sums_of, run) != before
    run.rollback("a")
    assert both(sums_of, run) == before


def export(run):
    parts, token = [], ""
    while not parts or token:
        request = op.ExportRunRequest(run_id=run.run_id, page_token=token)
        page = run.stubs.operator.ExportRun(request)
        parts += page.parts
        token = page.next_page_token
    return parts


def test_an_exported_run_comes_back_with_its_objective(graded, sums_of):
    run, rng = graded(), random.Random(4)
    for step in range(3):
        play(run, step, rng)
    parts = export(run)
    assert any("/objective_sq/" in part.name for part in parts)
    copy = RunDriver(run.stubs, f"{run.run_id}-copy")
    copy.stubs.operator.ImportRun(
        op.ImportRunRequest(run_id=copy.run_id, request_id="i", parts=parts, commit=True)
    )
    assert both(sums_of, copy) == both(sums_of, run)
    assert dict(copy.get().config.objective) == WEIGHTS
    assert copy.stats() == run.stats()
    play(copy, 3, rng)


def test_an_export_whose_squares_exceed_its_objective_is_refused(graded, refused):
    run, rng = graded(), random.Random(5)
    play(run, 0, rng)
    parts = export(run)
    for part in parts:
        if "/objective_sq/" in part.name:
            part.content = part.content[:-4] + b"\0\x0f\0\0"
    request = op.ImportRunRequest(run_id="never", request_id="i", parts=parts, commit=True)
    answer = refused(run.stubs.operator.ImportRun, request)
    assert answer.status == "INVALID_ARGUMENT"
    assert "an objective is at most 1 and its square at most itself" in answer.details


def test_a_server_that_follows_and_one_that_reads_hold_the_same(
    graded, start_server, sums_of, monkeypatch
):
    monkeypatch.setattr(engine, "FOLLOW_INTERVAL_S", 3600.0)
    run, rng = graded(window_steps=2), random.Random(6)
    follower = start_server()
    followed = run.through(follower.stubs)
    followed.stats()
    for step in range(5):
        play(run, step, rng)
    newcomer = start_server()
    expected = sums_of(run, "objective")
    for server in (follower, newcomer):
        run.through(server.stubs).stats()
        mirror = server.app.engine.served(run.run_id).run.mirror
        for name in (columns.OBJECTIVE, columns.OBJECTIVE_SQ):
            total = {f"p{i}": n for i, n in enumerate(mirror.total(name).tolist()) if n}
            assert total == sums_of(run, name)
    assert sum(expected.values()) > 0


# Configuration


def test_shares_add_up_to_one_in_one_order():
    channels = [{"name": name, "min_value": 0.0, "max_value": 1.0} for name in ("b", "a")]
    weights = {"reward": 3.0, "b": 1.0, "a": 4.0}
    config = RunConfig.from_mapping({"channels": channels, "objective": weights})
    assert config.objective_shares() == [("a", 0.5), ("b", 0.125), ("reward", 0.375)]
    assert RunConfig.from_mapping(config.to_mapping()) == config
    assert RunConfig().objective_shares() == []


@pytest.mark.parametrize("discount", [0.9, "nonsense"])
def test_a_stored_discount_is_dropped(discount):
    stored = {"selection": {"discount": discount, "group_size": 4}, "window_steps": 3}
    config = RunConfig.from_mapping(stored)
    assert (config.selection.group_size, config.window_steps) == (4, 3)
    assert "discount" not in config.to_mapping()["selection"]
