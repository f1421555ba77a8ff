"""The ledger's raw keys: packed columns, and a time to live wherever a key is not permanent."""

from __future__ import annotations

import re
import struct

import pytest

from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2
from curriculum_server.store import batches, commit, reports

CELL_BYTES = 4
COLUMN = re.compile(
    r"w:(\d+):(attempts|passes|reward_excess|reward_sq_excess|tokens|probed|objective|objective_sq|ch:\w+)"
)
PERMANENT = re.compile(
    r"meta|events|leases|catalog:\d+|payload:\d+|embedding:\d+|open:\d+|w:\d+:served|"
    + COLUMN.pattern
)
EXPIRING = re.compile(r"batch:\d+:.*|report:\d+:.*|rollback:.*")


@pytest.fixture
def keys_of(raw):
    """The run's keys, without their prefix."""

    def find(run):
        prefix = f"cur:{{{run.run_id}}}:"
        found = raw.scan_iter(match=f"{prefix}*", count=10_000)
        return {key.decode().removeprefix(prefix): key for key in found}

    return find


def cells(blob):
    return list(struct.unpack(f">{len(blob) // CELL_BYTES}I", blob))


def use_everything(run):
    """A life with batches, probes, reports of all kinds, releases, checkpoints and a rollback."""
    for step in range(4):
        run.play(step, count=6)
    run.checkpoint("a", 3)
    batch = run.next(count=4, step=4)
    values = batch_pb2.ChannelValues(values=[0.5, 0.25])
    run.report(batch, {0: [0.5, 1.0]}, token_counts=[3, 4], channels={"entropy": values})
    run.release(batch)
    probes = run.probes(count=3, step=4).batch
    run.report_probes(probes, {0: [1.0], 2: [0.0]})
    run.next(count=2, step=5)
    run.publish(4, "/weights")
    run.update(window_steps=2)
    run.add([prompt_pb2.Prompt(prompt_id="new", domain="new")])
    run.embed({"new": [0.5, 1.0]})
    run.checkpoint("b", 6)
    run.play(7, count=6)
    run.rollback("b")
    run.play(7, count=6)
    run.next(count=2, step=8)


@pytest.fixture
def used(open_run):
    run = open_run(30, channels=[run_pb2.Channel(name="entropy", min_value=0, max_value=1)])
    use_everything(run)
    return run


def test_every_key_has_a_time_to_live_or_is_on_the_permanent_list(used, keys_of, raw):
    found = keys_of(used)
    assert len(found) > 20
    for name, key in found.items():
        if EXPIRING.fullmatch(name):
            assert 3600 < raw.ttl(key) <= 2 * 24 * 3600, name
        else:
            assert PERMANENT.fullmatch(name), f"{name} is on no list"
            assert raw.ttl(key) == -1, name


def test_all_keys_of_a_run_lie_on_one_cluster_slot(used, keys_of, raw):
    assert all(key.startswith(f"cur:{{{used.run_id}}}:".encode()) for key in keys_of(used).values())
    others = {key for key in raw.scan_iter(match="*", count=10_000) if b"{" not in key}
    assert others == {b"cur:runs"}


def test_a_column_takes_four_bytes_a_prompt_up_to_the_highest_touched(open_run, keys_of, raw):
    run = open_run(2000, selection={"group_size": 2})
    batch = run.next(count=50)
    groups = {slot: [1.0, 0.0] for slot in range(50)}
    run.report(batch, groups, token_counts=[5, 6] * 50)
    found = keys_of(run)
    columns = {name: raw.get(key) for name, key in found.items() if COLUMN.fullmatch(name)}
    assert sorted(columns) == ["w:0:attempts", "w:0:passes", "w:0:tokens"]
    highest = max(int(p.prompt.prompt_id[1:]) for p in batch.prompts)
    for blob in columns.values():
        assert len(blob) == CELL_BYTES * (highest + 1)
    assert raw.memory_usage(found["w:0:attempts"], samples=0) <= 2 * CELL_BYTES * 2000 + 200


def test_the_packed_counts_are_what_is_shown(used, keys_of, raw):
    found = keys_of(used)
    columns = {name: cells(raw.get(key)) for name, key in found.items() if COLUMN.fullmatch(name)}
    sums = {}
    for name, values in columns.items():
        for index, value in enumerate(values):
            column = name.split(":", 2)[2]
            sums[column, index] = sums.get((column, index), 0) + value
    shown = 0
    for index, state in enumerate(used.list().prompts):
        assert sums.get(("attempts", index), 0) == state.attempt_count
        assert sums.get(("passes", index), 0) == state.pass_count
        history = used.prompt(state.prompt_id).history
        assert sums.get(("tokens", index), 0) == sum(point.token_count for point in history)
        shown += state.attempt_count
    assert shown == used.stats().attempt_count > 0


def test_binary_rewards_write_no_reward_columns(open_run, keys_of):
    run = open_run(20, reward_min=-1.0)
    batch = run.next(count=4)
    run.report(batch, {0: [1.0, -1.0], 1: [-1.0] * 8, 2: [1.0]})
    assert not [name for name in keys_of(run) if "reward" in name or "tokens" in name]
    run.report(batch, {3: [0.5]})
    assert {n.split(":")[2] for n in keys_of(run) if "reward" in n} == {
        "reward_excess", "reward_sq_excess"}  # fmt: skip


def test_a_rollback_leaves_no_keys_of_the_windows_it_drops(open_run, keys_of):
    run = open_run(20, window_steps=1)
    run.play(1)
    run.checkpoint("a", 1)
    before = {name for name in keys_of(run) if name.startswith("w:")}
    for step in range(2, 6):
        run.play(step)
    assert {name for name in keys_of(run) if name.startswith("w:")} > before
    run.rollback("a")
    assert {name for name in keys_of(run) if name.startswith("w:")} == before


def test_a_refused_request_writes_nothing(used, keys_of, raw, refused):
    trainer = used.stubs.trainer

    def content():
        return {name: raw.dump(key) for name, key in keys_of(used).items()}

    batch = used.next("batch", count=2, step=8)
    before = content()
    for call, request in (
        (trainer.NextBatch, used.next_request(count=0)),
        (trainer.NextBatch, used.next_request("batch", count=3, step=8)),
        (trainer.ReportOutcomes, used.report_request(batch, {0: [2.0]})),
        (trainer.ReportOutcomes, used.report_request(batch, {0: [1.0] * 9})),
        (trainer.ReportOutcomes, used.report_request(batch, {7: [1.0]})),
        (trainer.ReportOutcomes, used.report_request(batch, {0: [1.0]}, timeline=0)),
        (trainer.ReportOutcomes, used.report_request(batch, {0: [1.0]}, batch_id="none")),
    ):
        refused(call, request)
        assert content() == before


def test_deleting_a_run_removes_every_key_of_it_and_of_no_other(used, drive, keys_of, raw):
    bystander = drive(f"{used.run_id}x")
    bystander.stubs.add_prompts(bystander.run_id, 3)
    kept = keys_of(bystander)
    used.delete()
    assert list(keys_of(used)) == ["deleted"]  # says so for a day
    assert keys_of(bystander) == kept
    assert raw.zscore("cur:runs", used.run_id) is None
    assert raw.zscore("cur:runs", bystander.run_id) is not None


def test_any_number_of_batches_leaves_a_bounded_event_stream(open_run, keys_of, raw, monkeypatch):
    for module in (batches, commit, reports):
        monkeypatch.setattr(module, "EVENT_STREAM_LENGTH", 10)
    run = open_run(50)
    for number in range(200):
        run.release(run.next(f"b{number}", count=2))
    # Trimming goes by whole nodes of the stream, of 100 entries at most.
    assert raw.xlen(keys_of(run)["events"]) <= 110
    assert run.stats().leased_prompt_count == 0
