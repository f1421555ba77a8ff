"""A store that the first version wrote is read, and goes on."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_server.store.document import SCHEMA_VERSION
from tests.server.driving import RunDriver

DATA = Path(__file__).parent / "data" / "store_schema_1.json"
"""Every key of a store that commit e0a1a06 wrote, and what its server showed of it: `now`, and at
the checkpoints `a` and `b`."""

COUNT_FIELDS = ("first_policy_step", "last_policy_step", "attempt_count", "pass_count")
WINDOW_FIELDS = (*COUNT_FIELDS, "group_count", "mixed_group_count")


def decoded(text):
    return base64.b64decode(text)


def restore(raw, written):
    """Write the keys as they were; times are moved so that the leases hold."""
    later_s = int(time.time()) - written["unix_s"]
    for entry in written["keys"]:
        key, value = decoded(entry["key"]), entry["value"]
        if entry["type"] == "string":
            raw.set(key, decoded(value))
        elif entry["type"] == "hash":
            fields = {name: decoded(content) for name, content in value.items()}
            if "expire" in fields:
                fields["expire"] = b"%d" % (int(fields["expire"]) + later_s)
            raw.hset(key, mapping=fields)
        elif entry["type"] == "zset":
            move = later_s if key.endswith(b":leases") else 0
            raw.zadd(key, {decoded(member): score + move for member, score in value})
        else:
            assert entry["type"] == "stream"
            for event_id, fields in value:
                pairs = {decoded(name): decoded(content) for name, content in fields}
                raw.xadd(key, pairs, id=event_id)
        if entry["ttl_ms"] >= 0:
            raw.pexpire(key, entry["ttl_ms"])


@pytest.fixture
def written():
    return json.loads(DATA.read_text())


@pytest.fixture
def old_store(plain_valkey, written):
    raw = plain_valkey.start()
    restore(raw, written)
    yield raw
    raw.close()


@pytest.fixture
def run(old_store, plain_valkey, start_server):
    return RunDriver(start_server(redis=plain_valkey.url).stubs, "first")


def seen(run):
    """What the file has of a moment."""
    stats, states = run.stats(), run.list().prompts
    served = {s.prompt_id: s.last_served_step for s in states if s.HasField("last_served_step")}
    return {
        "timeline": stats.timeline,
        "policy_step": stats.policy_step,
        "attempts": stats.attempt_count,
        "passes": stats.pass_count,
        "groups": stats.group_count,
        "mixed": stats.mixed_group_count,
        "leased": stats.leased_prompt_count,
        "checkpoints": [[c.name, c.policy_step] for c in run.get().checkpoints],
        "windows": [fields(w, *WINDOW_FIELDS) for w in stats.windows],
        "history": {s.prompt_id: history(run, s.prompt_id) for s in states if s.attempt_count},
        "served": served,
    }


def history(run, prompt_id):
    return [
        [*fields(h, *COUNT_FIELDS), pytest.approx(h.mean_reward, abs=1e-4), h.token_count]
        for h in run.prompt(prompt_id).history
    ]


def fields(message, *names):
    return [getattr(message, name) for name in names]


def findings(run):
    kinds = set()
    token = ""
    while True:
        request = op.CheckStoreRequest(page_token=token)
        page = run.stubs.operator.CheckStore(request)
        kinds |= {(finding.run_id, finding.kind) for finding in page.findings}
        token = page.next_page_token
        if not token:
            return kinds - {("", "append_only_lags")}  # how this test's store is set up


def folded(windows, seen_windows):
    """The file's windows with those made one that are seen as one now."""
    sums = []
    for first, last, *_ in seen_windows:
        inside = [w for w in windows if first <= w[0] and w[1] <= last]
        sums.append([first, last, *(sum(w[i] for w in inside) for i in range(2, 6))])
    return sums


def test_everything_that_was_counted_is_there(run, written):
    then, now = written["seen"]["now"], seen(run)
    windows = now.pop("windows")
    assert windows == folded(then.pop("windows"), windows)
    for prompt_id, points in now.pop("history").items():
        before = then["history"].pop(prompt_id)
        assert [sum(p[i] for p in points) for i in (2, 3, 5)] == [
            sum(p[i] for p in before) for i in (2, 3, 5)
        ]
    assert not then.pop("history")
    assert now == then
    assert findings(run) == set()


def test_the_batch_that_was_open_is_the_same_and_takes_its_reports(run, written):
    batch = run.next("open", count=5, step=14)
    expected = written["open_batch"]
    assert [p.prompt.prompt_id for p in batch.prompts] == expected["prompt_ids"]
    assert batch.timeline == expected["timeline"]
    attempts = run.stats().attempt_count
    run.report(batch, {0: [1.0, -0.5]}, request_id="partly")  # a repeat
    assert run.stats().attempt_count == attempts
    run.report(batch, {0: [1.0, 1.0], 1: [0.0] * 4}, request_id="rest")
    assert run.stats().attempt_count == attempts + 6
    assert findings(run) == set()


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_rollback_to_a_checkpoint_restores_what_there_was(run, written, name):
    answer = run.rollback(name)
    then, now = written["seen"][f"at_{name}"], seen(run)
    assert answer.timeline == now["timeline"] == 2
    for moment in (then, now):
        # Probes that were open at the checkpoint are leased no more.
        del moment["timeline"], moment["leased"]
    if name == "b":
        then["windows"] = folded(then["windows"], now["windows"])
    assert now == then
    assert findings(run) == set()


def test_a_rollback_that_is_repeated_is_still_known(run):
    assert run.rollback("a", "back-to-a").timeline == 1


def test_the_run_goes_on_and_its_document_is_of_the_present_schema(run, old_store):
    for step in range(15, 30):
        run.play(step, count=6)
    run.checkpoint("c", 29)
    run.play(30)
    run.rollback("c")
    run.play(30)
    document = json.loads(old_store.hget("cur:{first}:meta", "doc"))
    assert document["schema"] == SCHEMA_VERSION
    assert [mark["name"] for mark in document["checkpoints"]] == ["a", "b", "c"]
    assert findings(run) == set()


def test_an_old_run_can_be_exported_into_a_new_one(run):
    parts, token = [], ""
    while True:
        page = run.stubs.operator.ExportRun(op.ExportRunRequest(run_id="first", page_token=token))
        parts += page.parts
        token = page.next_page_token
        if not token:
            break
    operator = run.stubs.operator
    operator.ImportRun(op.ImportRunRequest(run_id="copy", request_id="i", parts=parts, commit=True))
    before, after = seen(run), seen(RunDriver(run.stubs, "copy"))
    assert (before.pop("leased"), after.pop("leased")) == (8, 0)
    assert after == before


def test_a_run_of_a_newer_schema_is_refused_by_name(old_store, plain_valkey, start_server, refused):
    document = json.loads(old_store.hget("cur:{first}:meta", "doc"))
    document |= {"schema": SCHEMA_VERSION + 1, "novelty": True}
    old_store.hset("cur:{first}:meta", "doc", json.dumps(document))
    run = RunDriver(start_server(redis=plain_valkey.url).stubs, "first")
    answer = refused(run.stubs.operator.GetRun, op.GetRunRequest(run_id="first"))
    assert (answer.status, answer.error) == ("FAILED_PRECONDITION", "StateError")
    assert f"schema={SCHEMA_VERSION + 1}: must be at most {SCHEMA_VERSION}" in answer.details
    assert refused(run.stubs.trainer.NextBatch, run.next_request()).error == "StateError"
    assert findings(run) == {("first", "schema_unknown")}
