"""Old windows become one, and nothing that anybody sees or resumes from changes."""

from __future__ import annotations

import json

import pytest

from curriculum_server.store.document import Document
from curriculum_server.store.windows import OPEN_WINDOWS
from tests.server.test_timelines import content, ledger, train

STEPS = 40


@pytest.fixture
def stored(raw):
    """The windows that the store holds of a run, by the keys of their columns and the document."""

    def read(run):
        prefix = f"cur:{{{run.run_id}}}:"
        document = Document.from_json(raw.hget(f"{prefix}meta", "doc"))
        keys = [key.decode().removeprefix(prefix) for key in raw.scan_iter(match=f"{prefix}w:*")]
        in_keys = {int(key.split(":")[1]) for key in keys}
        counters = {int(f.split(b":")[1]) for f in raw.hkeys(f"{prefix}meta") if b":" in f}
        assert in_keys | counters <= {window.window for window in document.windows}
        return document.windows

    return read


def long_run(open_run, **config):
    return open_run(
        60, window_steps=1, reward_min=-1.0, pass_threshold=0.5,
        selection={"rest_steps": 2}, **config
    )  # fmt: skip


def test_old_windows_are_merged_and_every_count_stays(open_run, start_server, stored, wait_until):
    run = long_run(open_run)
    batches = train(run, range(STEPS))
    wait_until(lambda: len(stored(run)) <= 1 + OPEN_WINDOWS + 5)
    stats = run.stats()
    assert stats.attempt_count == sum(p.attempt_count for b in batches for p in b.prompts)
    assert stats.group_count == 6 * STEPS == sum(w.group_count for w in stats.windows)
    assert stats.mixed_group_count == sum(w.mixed_group_count for w in stats.windows) > 0
    assert (stats.windows[0].first_policy_step, stats.windows[-1].last_policy_step) == (0, 39)
    fresh = run.through(start_server().stubs)
    assert fresh.seen() == run.seen()
    prompt = batches[0].prompts[0].prompt.prompt_id
    assert fresh.prompt(prompt) == run.prompt(prompt)


def test_a_rollback_over_merged_windows_is_exact(open_run, start_server, stored, wait_until):
    run = long_run(open_run)
    train(run, range(13))
    run.checkpoint("early", 12)
    at_early = ledger(run)
    train(run, range(13, 21))
    run.checkpoint("late", 20)
    at_late = ledger(run)
    first = train(run, range(21, 60))
    end = ledger(run)
    # The checkpoints keep some windows apart, and those behind them are merged.
    wait_until(lambda: len(stored(run)) <= 3 * (OPEN_WINDOWS + 6))
    run.rollback("late")
    assert ledger(run) == at_late
    again = train(run.through(start_server().stubs), range(21, 60))
    assert content(again) == content(first)
    assert ledger(run) == end
    run.delete_checkpoint("late")
    wait_until(lambda: len(stored(run)) <= 2 * (OPEN_WINDOWS + 6))
    assert ledger(run)[1].windows == end[1].windows
    run.rollback("early")
    assert ledger(run) == at_early


def test_two_servers_merge_one_run_beside_its_trainers(open_run, start_server, stored, wait_until):
    run = long_run(open_run)
    servers = [run, *(run.through(start_server().stubs) for _ in range(2))]
    for step in range(STEPS):
        servers[step % 3].play(step, count=6)
    wait_until(lambda: len(stored(run)) <= 1 + OPEN_WINDOWS + 5)
    assert [server.stats().group_count for server in servers] == [6 * STEPS] * 3
    assert len({server.seen() for server in servers}) == 1


def test_merged_servings_still_rest_their_prompts(open_run, stored, wait_until, raw):
    run = open_run(200, window_steps=1, selection={"rest_steps": 30})
    last_served = {}
    for step in range(30):
        for p in run.play(step, count=3).prompts:
            last_served[p.prompt.prompt_id] = step
    wait_until(lambda: len(stored(run)) <= 1 + OPEN_WINDOWS + 5)
    states = {s.prompt_id: s.last_served_step for s in run.list().prompts if s.attempt_count}
    assert states == last_served
    document = json.loads(raw.hget(f"cur:{{{run.run_id}}}:meta", "doc"))
    merged = next(w["window"] for w in document["windows"] if w["span"] > 4)
    log = raw.get(f"cur:{{{run.run_id}}}:w:{merged}:served")
    assert len(log) % 8 == 0
    assert len({log[i : i + 4] for i in range(0, len(log), 8)}) == len(log) // 8
