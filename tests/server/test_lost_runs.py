"""A store that comes back empty or older than it was."""

from __future__ import annotations

import pytest
import redis

from curriculum_api.errors import StoreUnavailableError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2
from curriculum_api.v1 import trainer_service_pb2 as tr
from curriculum_server.engine import engine
from curriculum_server.engine import run as engine_run
from curriculum_server.store.embedded import EmbeddedValkey
from tests.server.driving import RunDriver, refusal


@pytest.fixture
def lossy(loop_thread, tmp_path, start_server):
    """A run on a server over a store of its own, and a connection to that store."""
    valkey = EmbeddedValkey(tmp_path / "data", "everysec")
    loop_thread.call(valkey.start())
    server = start_server(redis=valkey.url)
    store = redis.Redis(unix_socket_path=valkey.url.removeprefix("unix://"))
    server.stubs.create_run("r")
    server.stubs.add_prompts("r", 20)
    run = RunDriver(server.stubs, "r")
    run.play(0)
    yield run, store, lambda: start_server(redis=valkey.url)
    store.close()
    loop_thread.call(valkey.stop())


def put_back(store, older):
    """At once, as a failover or a restart does it."""
    with store.pipeline(transaction=True) as at_once:
        at_once.flushall()
        for key, value in older.items():
            at_once.restore(key, 0, value)
        at_once.execute()


def ids(batch):
    return {p.prompt.prompt_id for p in batch.prompts}


def every_call(run, batch):
    trainer, operator = run.stubs.trainer, run.stubs.operator
    return [
        (trainer.NextBatch, run.next_request(step=1)),
        (trainer.NextBatch, run.next_request("held", step=1)),
        (trainer.ReportOutcomes, run.report_request(batch, {0: [1.0]})),
        (trainer.ReleaseBatch, tr.ReleaseBatchRequest(run_id="r", batch_id="held")),
        (operator.GetRun, op.GetRunRequest(run_id="r")),
        (operator.GetStats, op.GetStatsRequest(run_id="r")),
        (operator.ListPrompts, op.ListPromptsRequest(run_id="r")),
        (operator.CreateRun, op.CreateRunRequest(run_id="r")),
    ]


def test_a_run_that_the_store_lost_is_data_loss_until_somebody_deletes_it(lossy):
    run, store, _ = lossy
    batch = run.next("held", step=1)
    store.flushall()
    for _ in range(2):
        for call, request in every_call(run, batch):
            answer = refusal(call, request)
            assert (answer.status, answer.error) == ("DATA_LOSS", "CorruptStateError"), request
            assert "the store does not hold this run any more" in answer.details
    run.delete()
    request = op.GetRunRequest(run_id="r")
    assert refusal(run.stubs.operator.GetRun, request).status == "NOT_FOUND"
    run.stubs.create_run("r")
    assert run.get().prompt_count == 0


def test_a_run_that_comes_back_is_served_on(lossy):
    run, store, _ = lossy
    before = run.seen()
    kept = {key: (store.dump(key), max(0, store.pttl(key))) for key in store.scan_iter()}
    store.flushall()
    assert refusal(run.stubs.trainer.NextBatch, run.next_request()).status == "DATA_LOSS"
    for key, (value, ttl) in kept.items():
        store.restore(key, ttl, value)
    assert run.seen() == before
    run.play(1)


def test_a_run_that_another_server_deleted_is_not_lost(lossy):
    run, _, another_server = lossy
    other = run.through(another_server().stubs)
    other.delete()
    answer = refusal(run.stubs.trainer.NextBatch, run.next_request())
    assert answer.status == "NOT_FOUND"
    other.stubs.create_run("r")
    assert run.get().prompt_count == 0


def test_a_store_that_went_back_is_believed_and_complained_of(lossy, caplog):
    run, store, another_server = lossy
    other = run.through(another_server().stubs)
    older = {key: store.dump(key) for key in store.scan_iter()}
    before = run.counts()
    run.play(1)
    other.play(1)
    assert run.counts() == other.counts() != before
    put_back(store, older)
    assert other.counts() == run.counts() == before
    assert "store lost events run=r" in caplog.text
    other.play(2)
    assert run.counts() == other.counts()
    fresh = run.through(another_server().stubs)
    assert fresh.counts() == run.counts()


def test_a_store_with_another_history_of_the_same_length_is_noticed_at_the_next_lease(
    lossy, monkeypatch
):
    """A failover that lost events, and as many new ones since: numbers alone do not tell."""
    monkeypatch.setattr(engine, "FOLLOW_INTERVAL_S", 3600.0)
    run, store, another_server = lossy
    stale = run.through(another_server().stubs)
    before = {key: store.dump(key) for key in store.scan_iter()}
    stale.next(count=5, step=1)
    stale.stats()
    put_back(store, before)
    held = run.next(count=5, step=1)
    taken = stale.next(count=15, step=1)
    assert len(taken.prompts) == 15
    assert not ids(taken) & ids(held)


def test_prompts_that_a_store_lost_are_forgotten(lossy):
    """After a failover that lost them another server may have added others in their place."""
    run, store, another_server = lossy
    other = run.through(another_server().stubs)
    before = {key: store.dump(key) for key in store.scan_iter()}
    run.add(prompt_pb2.Prompt(prompt_id=f"lost-{i}", domain="d") for i in range(2))
    assert run.get().prompt_count == 22
    put_back(store, before)
    other.add(prompt_pb2.Prompt(prompt_id=f"new-{i}", domain="d") for i in range(2))
    assert {s.prompt_id for s in run.list().prompts} == {s.prompt_id for s in other.list().prompts}
    assert run.add([prompt_pb2.Prompt(prompt_id="lost-0", domain="d")]).added_count == 1
    batch = run.next(count=23, step=3)
    run.report(batch, {p.slot: [1.0] for p in batch.prompts})
    assert run.counts() == other.counts()


def test_a_layout_that_was_lost_is_not_taken_for_the_next_one(lossy, monkeypatch):
    monkeypatch.setattr(engine, "FOLLOW_INTERVAL_S", 3600.0)
    run, store, another_server = lossy
    stale = run.through(another_server().stubs)
    batch = stale.next(count=2, step=0)
    before = {key: store.dump(key) for key in store.scan_iter()}
    stale.next(count=2, step=1)  # opens a window
    put_back(store, before)
    run.checkpoint("a", 0)
    stale.report(batch, {0: [1.0] * 8}, policy_step=1)
    fresh = run.through(another_server().stubs)
    assert fresh.stats().attempt_count == run.stats().attempt_count == stale.stats().attempt_count
    assert sum(w.attempt_count for w in fresh.stats().windows) == fresh.stats().attempt_count
    assert fresh.counts()[batch.prompts[0].prompt.prompt_id] in ((8, 8), (16, 9))


def test_a_read_that_fails_within_an_event_raises_no_alarm(lossy, monkeypatch, caplog):
    monkeypatch.setattr(engine, "FOLLOW_INTERVAL_S", 3600.0)
    run, _, another_server = lossy
    server = another_server()
    other, failures = run.through(server.stubs), []
    other.stats()
    read = engine_run.load_header

    async def fail_once(redis, keys):
        if redis is server.app.engine.redis and not failures:
            failures.append(redis)
            raise StoreUnavailableError("the store cannot be reached")
        return await read(redis, keys)

    run.checkpoint("a", 0)
    monkeypatch.setattr(engine_run, "load_header", fail_once)
    request = op.GetStatsRequest(run_id="r")
    assert refusal(other.stubs.operator.GetStats, request).status == "UNAVAILABLE"
    assert other.stats() == run.stats()
    assert "store lost events" not in caplog.text
