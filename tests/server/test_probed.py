"""Probes tell of a prompt, and are no training on it."""

from __future__ import annotations

import pytest

SELECTION = {"optimism": 0.0, "reach_share": 0.0, "review_share": 0.0, "rest_steps": 0}


def halves(batch, wanted=lambda number: True):
    """Every other attempt passes, on the wanted ones of the batch's prompts."""
    chosen = [p for p in batch.prompts if wanted(int(p.prompt.prompt_id[1:]))]
    return {p.slot: [1.0, 0.0] * (p.attempt_count // 2) for p in chosen}


def share_of_first_half(run, *, step):
    hits = 0
    for _ in range(10):
        batch = run.next(count=10, step=step)
        hits += sum(int(p.prompt.prompt_id[1:]) < 50 for p in batch.prompts)
        run.release(batch)
    return hits / 100


@pytest.mark.parametrize(("by_probes", "least", "most"), [(True, 0.35, 0.85), (False, 0.0, 0.1)])
def test_training_wears_a_prompt_and_probing_does_not(
    open_run, start_server, by_probes, least, most
):
    # 100 prompts that pass half of the time, half of them sampled in seven visits more. They are
    # known better and so somewhat likelier to be mixed.
    run = open_run(100, selection=SELECTION)
    for visit in range(8):
        ask, report = (run.probes, run.report_probes) if by_probes else (run.next, run.report)
        given = ask(count=100, step=0, **({"attempt_count": 8} if by_probes else {}))
        batch = given.batch if by_probes else given
        report(batch, halves(batch, lambda number, visit=visit: visit == 0 or number < 50))
        run.release(batch)
    for server in (run, run.through(start_server().stubs)):  # one that follows, one that reads
        assert least <= share_of_first_half(server, step=1) <= most


def test_probes_count_towards_no_cap(open_run):
    # .019 of 50 x 8 attempts is less than a group; who was only probed had none that trains.
    config = SELECTION | {"max_share": 0.019, "wear_visits": 0.0}
    run = open_run(60, selection=config)
    probed = run.probes(count=60, step=0).batch
    run.report_probes(probed, halves(probed))
    batch = run.next(count=50, step=1)
    assert len(batch.prompts) == 50
    run.report(batch, halves(batch))
    served = {p.prompt.prompt_id for p in batch.prompts}
    again = run.next(count=10, step=2)
    assert {p.prompt.prompt_id for p in again.prompts}.isdisjoint(served)
