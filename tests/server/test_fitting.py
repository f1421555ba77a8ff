"""When a model is fitted: before somebody waits for it, and not with every report."""

from __future__ import annotations

import numpy as np
import pytest

from curriculum import Pool
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_server.engine import composing


@pytest.fixture
def fits(monkeypatch):
    """Of every fit, how many blocks it saw."""
    seen = []
    fit = Pool.fit

    def counted(pool):
        seen.append(len(pool.blocks))
        return fit(pool)

    monkeypatch.setattr(Pool, "fit", counted)
    return seen


def play(run, step, name):
    """A step whose request is one of a row, so that the next is expected."""
    batch = run.next(f"{name}-{step}", count=8, step=step)
    run.report(
        batch, {p.slot: [1.0] * (p.slot % 9) + [0.0] * (8 - p.slot % 9) for p in batch.prompts}
    )
    return batch


def test_a_window_starts_with_a_model_that_was_fitted_before_it_was_asked_for(
    open_run, start_server, fits, wait_until
):
    run = open_run(60, domains=3, window_steps=2)
    for step in range(3):
        play(run, step, "t")
    wait_until(lambda: fits and fits[-1] == 3)  # for the third window, which is not there yet
    before = len(fits)
    batch = run.next("t-3", count=8, step=3)
    assert len(fits) == before
    run.release(batch)
    fresh = run.through(start_server().stubs)
    assert np.array_equal(believed(run), believed(fresh))
    assert fits[before:].count(3) == 1  # the fresh server's


def test_a_report_in_between_has_the_next_window_fitted_again(
    open_run, start_server, fits, wait_until
):
    run = open_run(60, domains=3, window_steps=2)
    for step in range(2):
        play(run, step, "t")
    kept_back = run.next("other", count=8, step=1)
    play(run, 2, "t")
    wait_until(lambda: fits and fits[-1] == 3)
    run.report(kept_back, {p.slot: [1.0] * 8 for p in kept_back.prompts})
    run.next("t-3", count=8, step=3)
    assert np.array_equal(believed(run), believed(run.through(start_server().stubs)))


def test_a_burst_of_late_reports_is_fitted_once(open_run, fits, wait_until):
    run = open_run(60, window_steps=2)
    for step in range(2):
        play(run, step, "t")
    late = run.next("t-2", count=40, step=1)
    for step in range(2, 4):
        play(run, step, "u")
    before = len(fits)
    for prompt in late.prompts:
        run.report(late, {prompt.slot: [1.0, 0.0] * 4}, policy_step=1)
    assert len(fits) - before <= len(late.prompts) // 4
    run.next("u-4", count=8, step=4)
    assert len(fits) - before <= len(late.prompts) // 4 + 1


def test_reports_of_probes_are_judged_by_the_model_that_was_fitted_last(
    open_run, fits, wait_until, monkeypatch
):
    """Also by one that was fitted before its window was there."""
    run = open_run(60, domains=3, window_steps=2)
    for step in range(3):
        play(run, step, "t")
    wait_until(lambda: fits and fits[-1] == 3)
    batch, asked, beliefs = run.next("t-3", count=8, step=3), [], Pool.beliefs

    def noted(pool, model, *arguments):
        asked.append((len(pool.blocks), model.prior))
        return beliefs(pool, model, *arguments)

    monkeypatch.setattr(Pool, "beliefs", noted)
    believed(run)  # what is shown to an operator is of the window's own model
    report_probes(run, run.probes(count=2, step=3).batch)
    (_, shown), *_, (block_count, judged) = asked
    assert block_count == 3
    assert judged is shown
    run.release(batch)


def test_reports_of_probes_do_not_compose_what_a_trainer_will_ask_for(
    open_run, server, wait_until, monkeypatch
):
    """It trains on what it got, and what it will report changes the ledger."""
    run, compose, composed = open_run(60, window_steps=9), composing._compose, []

    async def noted(run, request):
        composed.append(request.request_id)
        return await compose(run, request)

    monkeypatch.setattr(composing, "_compose", noted)
    for step in range(2):
        play(run, step, "t")
    run.next("t-2", count=8, step=2)
    composed.clear()
    for number in range(3):
        report_probes(run, run.probes(f"probes-{number}", count=2, step=1).batch)
        refreshing = server.app.engine.served(run.run_id).refreshing
        wait_until(refreshing.done)
    assert set(composed) == {"probes-0", "probes-1", "probes-2"}


def report_probes(run, batch):
    rewards = {p.slot: [0.0] * p.attempt_count for p in batch.prompts}
    run.stubs.probe.ReportProbes(run.report_request(batch, rewards, kind=pr.ReportProbesRequest))


def believed(run):
    return np.array([(p.pass_rate, p.pass_rate_low) for p in run.list(page_size=1000).prompts])
