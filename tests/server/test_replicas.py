"""Two servers over one store: what goes through one is seen by the other."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle

import grpc
import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_server.engine import engine
from curriculum_server.store import batches, commit, reports

AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.fixture
def pair(open_run, start_server):
    """The same run through two servers."""

    def open_pair(*arguments, **config):
        run = open_run(*arguments, **config)
        return run, run.through(start_server().stubs)

    return open_pair


@pytest.fixture
def no_followers(monkeypatch):
    """Servers started from here on read events only when they are asked."""
    monkeypatch.setattr(engine, "FOLLOW_INTERVAL_S", 3600.0)


def ids(batch):
    return {p.prompt.prompt_id for p in batch.prompts}


def test_a_report_through_one_server_is_seen_by_the_other(no_followers, pair):
    a, b = pair(20, selection={"group_size": 4})
    assert b.stats().attempt_count == 0
    batch = a.next(count=3)
    a.report(batch, {0: [1.0] * 4, 1: [0.0] * 4, 2: [1.0]})
    assert b.stats() == a.stats()
    assert b.counts() == a.counts()
    assert b.stats().attempt_count == 9
    b.report(batch, {2: [0.0] * 3})
    assert a.stats() == b.stats()
    assert (a.stats().group_count, a.stats().leased_prompt_count) == (3, 0)


def test_a_batch_is_the_same_through_every_server(no_followers, pair):
    a, b = pair(20)
    b.stats()
    first = a.next("batch", count=4)
    assert b.next("batch", count=4) == first
    assert not ids(b.next("other", count=4)) & ids(first)
    b.release(first)
    assert ids(a.next("third", count=20)) >= ids(first)


def test_the_same_choice_is_made_by_every_server(no_followers, pair):
    """Whichever server is asked: the batch follows from the ledger and the request alone."""
    a, b = pair(100)
    c, d = pair(100)
    for step in range(6):
        one = (a, b)[step % 2].next(f"b{step}", count=5, step=step)
        other = (c, d)[step // 2 % 2].next(f"b{step}", count=5, step=step)
        assert [p.SerializeToString() for p in one.prompts] == [
            p.SerializeToString() for p in other.prompts
        ]
        rewards = {p.slot: [float((p.slot + step) % 3 == 0)] * 3 + [1.0] for p in one.prompts}
        (b, a)[step % 2].report(one, rewards)
        (d, c)[step % 2].report(other, rewards)
        (a, b)[step // 3].release(one)
        (c, d)[step // 3].release(other)


def test_servers_that_are_asked_at_once_never_lease_a_prompt_twice(pair):
    a, b = pair(200)
    with ThreadPoolExecutor(8) as callers:
        asked = [(server, f"b{n}") for n, server in zip(range(40), cycle([a, b]), strict=False)]
        batches = list(callers.map(lambda ask: ask[0].next(ask[1], count=5), asked))
    served = Counter(prompt_id for batch in batches for prompt_id in ids(batch))
    assert set(served.values()) == {1}
    assert len(served) == 200
    assert a.stats() == b.stats()
    assert a.stats().leased_prompt_count == 200


def test_one_request_sent_to_all_servers_at_once_gives_one_batch(pair):
    a, b = pair(50)
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda run: run.next("batch", count=6), [a, b] * 8))
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert a.stats().leased_prompt_count == 6


def test_reports_through_both_servers_at_once_add_exactly(pair):
    a, b = pair(40, selection={"group_size": 8})
    batch = a.next(count=40)
    requests = [
        a.report_request(batch, {slot: [float(part % 2)]})
        for slot in range(40)
        for part in range(8)
    ]
    servers = cycle([a, b, b, a, a])
    with ThreadPoolExecutor(8) as callers:
        receipts = list(
            callers.map(
                lambda ask: ask[0].stubs.trainer.ReportOutcomes(ask[1]).receipt,
                zip(servers, requests + requests[::2], strict=False),
            )
        )
    assert sum(receipt.duplicate for receipt in receipts) == 160
    assert set(a.counts().values()) == {(8, 4)}
    assert a.counts() == b.counts()
    assert a.stats() == b.stats()
    assert (a.stats().group_count, a.stats().mixed_group_count) == (40, 40)


def test_changes_of_a_run_reach_the_other_server(no_followers, pair):
    a, b = pair(4)
    b.stats()
    a.add([prompt_pb2.Prompt(prompt_id="new", domain="new")])
    assert len(b.next("all", count=9).prompts) == 5
    b.update(window_steps=9, selection=run_pb2.SelectionConfig(group_size=3))
    assert a.get() == b.get()
    a.publish(3, "/weights")
    assert b.probes(count=1).policy.uri == "/weights"
    b.checkpoint("c", 3)
    assert a.checkpoint("c", 3) == [("c", 3)]


def test_prompts_added_through_both_servers_at_once_are_all_there(pair):
    a, b = pair(0)
    servers = cycle([a, b])

    def add(ask):
        run, number = ask
        prompts = [prompt_pb2.Prompt(prompt_id=f"{number}-{i}", domain="d") for i in range(5)]
        return run.add([*prompts, prompt_pb2.Prompt(prompt_id="shared", domain="d")])

    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(add, zip(servers, range(20), strict=False)))
    assert sum(answer.added_count for answer in answers) == 101
    assert sum(answer.existing_count for answer in answers) == 19
    assert a.list() == b.list()
    assert a.get().prompt_count == 101


def test_a_rollback_through_one_server_holds_on_the_other(no_followers, pair):
    a, b = pair(20)
    a.play(1)
    a.checkpoint("c", 1)
    b.play(2)
    old = b.next(count=2, step=3)
    assert a.rollback("c").timeline == 1
    with pytest.raises(Exception, match="resume from there"):
        b.report(old, {0: [1.0]})
    new = a.next(count=2, step=2)
    assert new.timeline == 1
    assert b.stats() == a.stats()


def test_a_report_of_the_new_timeline_is_taken_by_a_server_that_missed_the_rollback(
    no_followers, pair
):
    a, b = pair(20)
    a.checkpoint("c", 0)
    b.play(1)
    a.rollback("c")
    batch = a.next(count=2, step=1)
    assert b.report(batch, {0: [1.0]}).attempt_count == 1
    assert a.stats().attempt_count == 1


def test_a_server_that_missed_a_rollback_gives_a_new_batch_for_an_old_name(no_followers, pair):
    a, b = pair(20)
    a.checkpoint("c", 0)
    old = b.next("batch", count=2, step=1)
    a.rollback("c")
    new = b.next("batch", count=2, step=1)
    assert (old.timeline, new.timeline) == (0, 1)
    assert a.next("batch", count=2, step=1) == new


def test_an_old_name_far_back_gives_a_new_batch_where_the_rollback_was_missed(no_followers, pair):
    a, b = pair(60, window_steps=1)
    a.checkpoint("c", 0)
    b.next("batch", count=1, step=1)
    for step in range(2, 14):
        b.next(count=1, step=step)
    a.rollback("c")
    assert b.next("batch", count=1, step=1).timeline == 1


def test_a_call_that_is_cut_off_while_it_reads_leaves_the_server_whole(no_followers, pair):
    a, b = pair(3)
    b.stats()
    for number in range(6):
        for i in range(40):
            a.add([prompt_pb2.Prompt(prompt_id=f"{number}-{i}", domain="d")])
        request = op.GetStatsRequest(run_id=b.run_id)
        with suppress(grpc.RpcError):
            b.stubs.operator.GetStats(request, timeout=0.002 + 0.001 * number)
        assert b.release(b.next(count=5)) == 5
    assert b.seen() == a.seen()


def test_a_run_that_was_deleted_elsewhere_is_gone(no_followers, pair):
    a, b = pair(5)
    batch = b.next(count=2)
    a.delete()
    for call in (b.stats, b.next, lambda: b.report(batch, {0: [1.0]})):
        with pytest.raises(Exception, match="there is no such run"):
            call()


def test_a_run_that_was_made_again_elsewhere_is_the_new_one(no_followers, pair):
    """Names repeat: a batch of the old run and one of the new have one id and other prompts."""
    a, b = pair(40, selection={"group_size": 2})
    old = b.next("batch-1", count=3)
    b.report(old, {0: [1.0, 0.0]})
    a.delete()
    a.stubs.create_run(a.run_id, run_pb2.RunConfig(seed=7))
    a.add([prompt_pb2.Prompt(prompt_id=f"q{i}", domain="q") for i in range(40)])
    new = a.next("batch-1", count=3)
    b.report(new, {1: [1.0]})
    assert a.counts() == {new.prompts[1].prompt.prompt_id: (1, 1)}
    assert b.counts() == a.counts()
    later = b.next("batch-2", count=3)
    assert all(prompt_id.startswith("q") for prompt_id in ids(later))


def test_a_server_that_lags_beyond_the_event_stream_reads_all_again(
    no_followers, monkeypatch, pair, caplog
):
    for module in (batches, commit, reports):
        monkeypatch.setattr(module, "EVENT_STREAM_LENGTH", 5)
    a, b = pair(60, selection={"group_size": 2})
    b.play(0)
    for step in range(1, 60):
        a.play(step, count=3)
    kept = a.next(count=4, step=60)
    assert "mirror reloaded" not in caplog.text
    assert b.stats() == a.stats()
    assert f"mirror reloaded run={a.run_id}" in caplog.text
    assert b.list() == a.list()
    assert b.get() == a.get()
    assert not ids(b.next(count=30, step=60)) & ids(kept)


def test_a_new_server_has_read_what_the_old_one_followed(pair, start_server):
    a, b = pair(60, window_steps=2, reward_min=-1.0, selection={"group_size": 3})
    for step in range(8):
        batch = (a, b)[step % 2].next(count=6, step=step)
        a.report(batch, {slot: [0.25, 1.0, -1.0] for slot in range(3)})
        b.report(batch, {slot: [0.5] for slot in range(3, 6)}, token_counts=[9] * 3)
        if step % 3 == 0:
            a.release(batch)
    a.checkpoint("c", 7)
    c = a.through(start_server().stubs)
    assert c.seen() == a.seen() == b.seen()
    prompts = [state.prompt_id for state in a.list().prompts if state.attempt_count]
    assert [c.prompt(i) for i in prompts] == [a.prompt(i) for i in prompts]


def test_one_rollback_through_two_servers_at_once_is_one_rollback(pair):
    a, b = pair(20)
    a.checkpoint("c", 0)
    with ThreadPoolExecutor(4) as callers:
        for number in range(10):
            name = f"rollback-{number}"
            asked = callers.map(lambda run, name=name: run.rollback("c", name), (a, b, b, a))
            assert {answer.timeline for answer in asked} == {number + 1}


def test_reports_that_meet_a_rollback_count_before_it_or_are_refused(open_run):
    """Those that wait for a window while the timeline changes are fenced off as well."""
    for number in range(10):
        run = open_run(40, window_steps=1, selection={"group_size": 2})
        run.checkpoint("c", 0)
        batch = run.next(count=8, step=1)
        requests = [
            run.report_request(batch, {slot: [1.0, 0.0]}, policy_step=2) for slot in range(8)
        ]

        def send(request, run=run):
            with suppress(grpc.RpcError):
                run.stubs.trainer.ReportOutcomes(request)

        with ThreadPoolExecutor(9) as callers:
            rolled = callers.submit(run.rollback, "c", f"r{number}")
            sent = [callers.submit(send, request) for request in requests]
            assert rolled.result().timeline == 1
            for report in sent:
                report.result()
        assert run.stats().attempt_count == 0
        assert run.stats().leased_prompt_count == 0


def test_servers_that_join_and_leave_under_load_serve_one_run(open_run, start_server):
    """Four trainers over two servers, a third that joins and the second that is stopped under way:
    no prompt is held twice at a time, every attempt counts once, and all believe the same."""
    run = open_run(120, selection={"group_size": 2, "rest_steps": 1})
    leaving = start_server()
    servers = [run, run.through(leaving.stubs)]
    held, held_lock, counted = set(), threading.Lock(), Counter()
    joined = threading.Event()

    def ask(call, request):
        """As a client does: the same request again, through whatever server answers."""
        while True:
            server = random.choice(servers)
            try:
                return call(server, request)
            except (grpc.RpcError, ValueError) as error:  # ValueError: its channel was closed
                if isinstance(error, grpc.RpcError) and error.code() not in AWAY:
                    raise

    def lease(server, request):
        return server.stubs.trainer.NextBatch(request).batch

    def count(server, request):
        return server.stubs.trainer.ReportOutcomes(request).receipt

    def train(trainer):
        for step in range(30):
            batch = ask(lease, run.next_request(f"{trainer}-{step}", count=6, step=step))
            with held_lock:
                assert not held & ids(batch)
                held.update(ids(batch))
            groups = {p.slot: [1.0, float(step % 2)] for p in batch.prompts[:-1]}
            with held_lock:  # before the report: from then on others may have them
                held.difference_update(ids(batch))
            ask(count, run.report_request(batch, groups, request_id=f"{trainer}-{step}"))
            with held_lock:
                counted.update({p.prompt.prompt_id: 2 for p in batch.prompts[:-1]})
            ask(lambda server, batch: server.release(batch), batch)
            if trainer == 0 and step == 10:
                servers.append(run.through(start_server().stubs))
                joined.set()
            if trainer == 1 and step == 15:
                joined.wait(30)
                leaving.stop()

    with ThreadPoolExecutor(4) as trainers:
        list(trainers.map(train, range(4)))
    remaining = [servers[0], servers[2], run.through(start_server().stubs)]
    shown = {i: attempts for i, (attempts, _) in remaining[0].counts().items()}
    assert shown == dict(counted)
    assert len({server.seen() for server in remaining}) == 1


def test_a_run_that_nobody_uses_is_let_go_and_read_again(
    open_run, start_server, monkeypatch, wait_until
):
    run = open_run(20)
    run.play(0)
    server = start_server()
    other = run.through(server.stubs)
    seen = other.seen()
    monkeypatch.setattr(engine, "IDLE_S", 0.0)
    wait_until(lambda: run.run_id not in server.app.engine._served)
    monkeypatch.undo()
    assert other.seen() == seen


def test_cells_that_are_full_are_full_everywhere(no_followers, open_run, start_server):
    # .8 x 2**32 tokens for each of 8 attempts: the sum that a server keeps beside the cells, which
    # are full, must not outgrow them.
    run, servers = open_run(4, selection={"rest_steps": 0}), [start_server()]
    run.through(servers[0].stubs).stats()
    for step in range(2):
        batch = run.next(count=4, step=step)
        tokens = [int(0.8 * 2**32)] * 32
        run.report(batch, {p.slot: [1.0] * 8 for p in batch.prompts}, token_counts=tokens)
        run.through(servers[0].stubs).stats()
    servers.append(start_server())
    run.through(servers[1].stubs).stats()
    follows, reads = (
        server.app.engine.served(run.run_id).run.mirror.totals["tokens"].tolist()
        for server in servers
    )
    assert follows == reads
    assert max(reads) >= 2**32 - 1
