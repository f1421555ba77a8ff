"""What an operator reads: sums that agree with each other, and the boundary."""

from __future__ import annotations

from math import comb

import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2
from curriculum_api.v1.stats_pb2 import StepRange


def total(bands):
    return bands.unseen_count + bands.beyond_count + bands.edge_count + bands.mastered_count


def by_hand(attempts, passes, k):
    """pass@k = 1 - C(n-c, k) / C(n, k), Chen et al. (2021)."""
    return 1 - comb(attempts - passes, k) / comb(attempts, k)


@pytest.fixture
def trained(open_run):
    """A run with prompts of every band, leases and several windows."""
    run = open_run(60, domains=3, window_steps=2, selection={"strategy": "uniform"})
    for step in range(6):
        batch = run.next(count=12, step=step)
        passes = {p.slot: (0, 4, 8, 2)[int(p.prompt.prompt_id[1:]) % 4] for p in batch.prompts}
        run.report(batch, {slot: [float(i < n) for i in range(8)] for slot, n in passes.items()})
    run.next(count=7, step=6)
    run.add([prompt_pb2.Prompt(prompt_id="new", domain="new")])
    return run


def test_the_parts_of_the_statistics_add_up(trained):
    stats = trained.stats()
    assert stats.prompt_count == total(stats.bands) == 61
    assert sum(stats.pass_rate_histogram) == 61
    assert len(stats.pass_rate_histogram) == len(stats.visited_pass_rate_histogram) == 20
    assert sum(stats.visited_pass_rate_histogram) == 61 - stats.bands.unseen_count == 60
    assert all(
        visited <= every
        for visited, every in zip(
            stats.visited_pass_rate_histogram, stats.pass_rate_histogram, strict=True
        )
    )
    assert [d.domain for d in stats.domains] == ["d0", "d1", "d2", "new"]
    for domain in stats.domains:
        assert domain.prompt_count == total(domain.bands)
        assert 0 < domain.mean_pass_rate < 1
        assert 0 < domain.prior_mean < 1
        assert domain.prior_concentration > 0
    for name in ("unseen_count", "beyond_count", "edge_count", "mastered_count"):
        assert sum(getattr(d.bands, name) for d in stats.domains) == getattr(stats.bands, name)
    for name in ("prompt_count", "attempt_count", "pass_count"):
        assert sum(getattr(d, name) for d in stats.domains) == getattr(stats, name)
    for name in ("attempt_count", "pass_count", "group_count", "mixed_group_count"):
        assert sum(getattr(w, name) for w in stats.windows) == getattr(stats, name)
    assert (stats.attempt_count, stats.group_count) == (6 * 12 * 8, 72)
    assert (stats.leased_prompt_count, stats.policy_step, stats.timeline) == (7, 6, 0)


def test_the_statistics_agree_with_the_prompts(trained):
    stats, states = trained.stats(), list(trained.list().prompts)
    assert sum(s.attempt_count for s in states) == stats.attempt_count
    assert sum(s.pass_count for s in states) == stats.pass_count
    assert sum(s.HasField("lease_expire_time") for s in states) == stats.leased_prompt_count
    for band, counted in (
        (prompt_pb2.BAND_UNSEEN, stats.bands.unseen_count),
        (prompt_pb2.BAND_BEYOND, stats.bands.beyond_count),
        (prompt_pb2.BAND_EDGE, stats.bands.edge_count),
        (prompt_pb2.BAND_MASTERED, stats.bands.mastered_count),
    ):
        assert sum(s.band == band for s in states) == counted
    for index, count in enumerate(stats.pass_rate_histogram):
        low, high = index / 20, (index + 1) / 20
        assert sum(low <= s.pass_rate < high for s in states) == count
    for domain in stats.domains:
        rates = [s.pass_rate for s in states if s.domain == domain.domain]
        assert domain.mean_pass_rate == pytest.approx(sum(rates) / len(rates), rel=1e-9)


def test_a_prompts_history_agrees_with_its_state_and_the_windows(trained):
    sums = {}
    for state in trained.list().prompts:
        history = trained.prompt(state.prompt_id).history
        assert sum(point.attempt_count for point in history) == state.attempt_count
        assert sum(point.pass_count for point in history) == state.pass_count
        firsts = [point.first_policy_step for point in history]
        assert firsts == sorted(set(firsts))
        for point in history:
            attempts, visited = sums.get(point.first_policy_step, (0, 0))
            sums[point.first_policy_step] = (attempts + point.attempt_count, visited + 1)
    windows = trained.stats().windows
    assert sums == {
        w.first_policy_step: (w.attempt_count, w.visited_prompt_count)
        for w in windows
        if w.attempt_count
    }


def test_the_bands_are_where_the_attempts_put_them(open_run):
    run = open_run(5, selection={"group_size": 64})
    batch = run.next(count=4)
    # A lone pass would not do for the last: in a domain of extremes it is taken for mastered.
    never, some, always, barely = (
        [0.0] * 64, [1.0, 0.0] * 32, [1.0] * 64, [1.0, 0.0])  # fmt: skip
    run.report(batch, {0: never, 1: some, 2: always, 3: barely})
    bands = [run.prompt(p.prompt.prompt_id).state.band for p in batch.prompts]
    assert bands == [
        prompt_pb2.BAND_BEYOND,
        prompt_pb2.BAND_EDGE,
        prompt_pb2.BAND_MASTERED,
        prompt_pb2.BAND_EDGE,
    ]
    assert run.stats().bands.unseen_count == 1


def test_evidence_fades_with_policy_steps(open_run):
    run = open_run(2)
    run.report(run.next(count=1), {0: [1.0, 0.0] * 4})
    known = max(run.list().prompts, key=lambda state: state.attempt_count)
    run.next(count=1, step=3000)
    later = run.prompt(known.prompt_id).state
    assert later.attempt_count == 8
    width = known.pass_rate_high - known.pass_rate_low
    assert later.pass_rate_high - later.pass_rate_low > 1.5 * width


def boundary_request(run, before, after, ks=()):
    return op.CompareBoundaryRequest(
        run_id=run.run_id,
        before=StepRange(first_policy_step=before[0], last_policy_step=before[1]),
        after=StepRange(first_policy_step=after[0], last_policy_step=after[1]),
        ks=ks,
    )


def compared(run, *arguments, **fields):
    return run.stubs.operator.CompareBoundary(boundary_request(run, *arguments, **fields))


def compare(run, *arguments, **fields):
    return compared(run, *arguments, **fields).points


def test_the_boundary_is_pass_at_k_over_prompts_attempted_in_both_ranges(open_run):
    run = open_run(4, window_steps=5, selection={"group_size": 8, "rest_steps": 0})
    early = run.next(count=4, step=0)
    # Prompt by prompt: (attempts, passes) early and late.
    early_counts = {"p0": (8, 1), "p1": (8, 0), "p2": (4, 2), "p3": (8, 8)}
    late_counts = {"p0": (8, 4), "p1": (8, 1), "p2": (8, 8), "p3": (2, 1)}

    def report(batch, counts):
        for served in batch.prompts:
            attempts, passes = counts[served.prompt.prompt_id]
            run.report(batch, {served.slot: [1.0] * passes + [0.0] * (attempts - passes)})

    report(early, early_counts)
    run.release(early)
    report(run.next(count=4, step=6), late_counts)
    points = compare(run, (0, 0), (6, 10), ks=[4, 1, 8, 16])
    assert [point.k for point in points] == [4, 1, 8, 16]
    for point in points[:3]:
        both = [i for i in early_counts if min(early_counts[i][0], late_counts[i][0]) >= point.k]
        assert point.prompt_count == len(both)
        before = sum(by_hand(*early_counts[i], point.k) for i in both) / len(both)
        after = sum(by_hand(*late_counts[i], point.k) for i in both) / len(both)
        assert point.before_pass_at_k == pytest.approx(before, abs=1e-9)
        assert point.after_pass_at_k == pytest.approx(after, abs=1e-9)
    # k = 4 by hand: p0 1 - C(7,4)/C(8,4) = 1/2, p1 0, p2 1 early; 69/70, 1/2, 1 late.
    assert points[0].before_pass_at_k == pytest.approx((1 / 2 + 0 + 1) / 3, abs=1e-9)
    assert points[0].after_pass_at_k == pytest.approx((69 / 70 + 1 / 2 + 1) / 3, abs=1e-9)
    assert (points[3].prompt_count, points[3].before_pass_at_k) == (0, 0)


def test_windows_of_a_range_are_added_up(open_run):
    run = open_run(1, window_steps=1, selection={"group_size": 2, "rest_steps": 0})
    for step, rewards in enumerate([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]):
        run.report(run.next(count=1, step=step), {0: rewards})
    (point,) = compare(run, (0, 1), (2, 3), ks=[3])
    assert point.before_pass_at_k == pytest.approx(by_hand(4, 1, 3), abs=1e-9)
    assert point.after_pass_at_k == pytest.approx(by_hand(4, 3, 3), abs=1e-9)


def test_the_boundary_has_four_points_unless_told(open_run):
    run = open_run(2)
    points = compare(run, (0, 0), (1, 2**64 - 1))
    assert [(point.k, point.prompt_count) for point in points] == [(1, 0), (2, 0), (4, 0), (8, 0)]


def ends(steps):
    return steps.first_policy_step, steps.last_policy_step


@pytest.fixture
def long_run(open_run):
    """A run of 36 windows of 2 steps behind step 0, the old ones merged, at step 71."""
    run = open_run(4, window_steps=2, selection={"group_size": 2, "rest_steps": 0})
    for step in range(0, 72, 2):
        run.play(step + (step > 0), count=2)
    return run


def test_a_comparison_tells_which_steps_it_is_of(long_run):
    spans = [(w.first_policy_step, w.last_policy_step) for w in long_run.stats().windows]
    wide = next(span for span in spans if span[1] - span[0] > 10)
    inside = (wide[0] + 3, wide[0] + 4)
    found = compared(long_run, inside, (spans[-2][0], 2**64 - 1))
    assert (ends(found.before), ends(found.after)) == (wide, (spans[-2][0], 71))
    assert found.policy_step == spans[-1][1] == 71
    found = compared(long_run, (0, 0), (73, 80))
    assert (ends(found.before), found.HasField("after")) == ((0, 0), False)


def test_ranges_that_share_a_window_are_refused(long_run, refused):
    spans = [(w.first_policy_step, w.last_policy_step) for w in long_run.stats().windows]
    wide = next(span for span in spans if span[1] - span[0] > 10)
    first, last = wide
    for before, after in (
        ((first + 1, first + 2), (last - 1, last - 1)),
        ((last - 1, last - 1), (0, last + 5)),
        ((0, 71), (0, 71)),
    ):
        request = boundary_request(long_run, before, after)
        answer = refused(long_run.stubs.operator.CompareBoundary, request)
        assert answer.status == "INVALID_ARGUMENT"
        assert answer.details.startswith(f"before={before[0]}")
        assert f"both have that of steps {first}–{last}; a window counts as" in answer.details
    request = boundary_request(long_run, (0, 0), (0, 0))
    answer = refused(long_run.stubs.operator.CompareBoundary, request)
    assert answer.details.startswith("before=0, after=0: must not share a window, and both have")


def test_the_mean_objective_is_told_where_there_is_one(open_run):
    run = open_run(4, window_steps=1, objective={"reward": 1.0})
    assert not run.stats().HasField("mean_objective")
    run.report(run.next(count=1, step=0), {0: [0.25, 0.5]})
    run.report(run.next(count=2, step=1), {0: [0.5], 1: [0.75]})
    stats = run.stats()
    assert stats.mean_objective == pytest.approx(0.5, abs=1e-4)
    means = [w.mean_objective for w in stats.windows if w.HasField("mean_objective")]
    assert means == pytest.approx([0.375, 0.625], abs=1e-4)


def test_without_an_objective_there_is_no_mean_of_it(trained):
    stats = trained.stats()
    assert not stats.HasField("mean_objective")
    assert not any(w.HasField("mean_objective") for w in stats.windows)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ks": range(1, 18)}, "len(ks)=17: must be in [0, 16]"),
        ({"ks": [0]}, "ks=0: must be in [1, 1024]"),
        ({"ks": [1, 1025]}, "ks=1025: must be in [1, 1024]"),
        (
            {"before": StepRange(first_policy_step=5, last_policy_step=4)},
            "before.last_policy_step=4: must be at least first_policy_step=5",
        ),
        (
            {"after": StepRange(first_policy_step=5, last_policy_step=4)},
            "after.last_policy_step=4: must be at least first_policy_step=5",
        ),
    ],
)
def test_a_bad_comparison_is_refused(open_run, refused, fields, said):
    run = open_run(2)
    request = op.CompareBoundaryRequest(run_id=run.run_id, **fields)
    answer = refused(run.stubs.operator.CompareBoundary, request)
    assert (answer.status, answer.details) == ("INVALID_ARGUMENT", said)


def test_the_prompts_that_are_left_to_train_on_are_counted(open_run):
    run = open_run(16, window_steps=2, selection={"strategy": "uniform"})
    for step in range(8):
        batch = run.next(count=16, step=step)
        passes = {p.slot: (0, 4, 8, 8)[int(p.prompt.prompt_id[1:]) % 4] for p in batch.prompts}
        run.report(batch, {slot: [float(i < n) for i in range(8)] for slot, n in passes.items()})
    assert run.stats().likely_mixed_prompt_count == 4
