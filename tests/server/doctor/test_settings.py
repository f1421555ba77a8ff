"""What the doctor says of a store's settings and of what it tells of itself."""

from __future__ import annotations

import time

import pytest

from curriculum_server.engine.check_settings import check_settings
from curriculum_server.engine.findings import Findings
from curriculum_server.store.settings import Settings
from tests.conftest import CONFIG, RunningServer
from tests.server.clusters import Cluster
from tests.server.doctor.looking import ERROR, WARNING, kinds, look, mend
from tests.server.driving import RunDriver

NO_FILE = {"aof_enabled": 0}


@pytest.mark.parametrize(
    ("setting", "value", "usual", "kind", "severity"),
    [
        ("appendfsync", "everysec", "always", "append_only_lags", WARNING),
        ("appendonly", "no", "yes", "persistence_off", WARNING),
        ("maxmemory-policy", "volatile-lru", "noeviction", "evicts", ERROR),
    ],
)
def test_a_setting_that_can_lose_something_is_named(
    stubs, store, setting, value, usual, kind, severity
):
    store.config_set("maxmemory", "1gb")
    assert look(stubs) == []
    store.config_set(setting, value)
    (finding,) = look(stubs)
    assert (finding.kind, finding.severity, finding.run_id) == (kind, severity, "")
    mend(store, [finding])
    assert look(stubs) == []
    assert store.config_get(setting)[setting] == usual


def test_a_replica_is_named(stubs, store):
    store.replicaof("127.0.0.1", 1)
    try:
        found = look(stubs)
    finally:
        store.replicaof("NO", "ONE")
    assert [(f.kind, f.severity) for f in found] == [("replica", ERROR)]


def test_a_store_that_refuses_to_tell_is_a_warning(stubs, store, loop_thread):
    rights = ["reset", "on", "nopass", "~*", "&*", "+@all", "-config", "-info"]
    store.execute_command("ACL", "SETUSER", "managed", *rights)
    url = f"{store.url}?username=managed&password=any"
    config = type(CONFIG)(**vars(CONFIG) | {"redis": url})
    running = RunningServer(loop_thread, config)
    try:
        (finding,) = look(running.stubs)
    finally:
        running.stop()
        store.execute_command("ACL", "DELUSER", "managed")
    assert (finding.kind, finding.severity) == ("settings_unreadable", WARNING)
    assert "INFO persistence" in finding.problem


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"aof_last_write_status": "err"}, {"append_only_failed"}),
        ({"aof_last_bgrewrite_status": "err"}, {"append_only_failed"}),
        ({"rdb_last_bgsave_status": "err"}, set()),
        (NO_FILE | {"rdb_last_bgsave_status": "err"}, {"snapshot_failed", "persistence_off"}),
        ({"valkey_version": "9.1.1"}, {"torn_tail"}),
        ({"valkey_version": "8.1.8"}, {"torn_tail"}),
        ({"server_name": "redis", "redis_version": "8.2.0"}, {"torn_tail"}),
        (NO_FILE | {"server_name": "redis", "redis_version": "8.2.0"}, {"persistence_off"}),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 0}, set()),
        ({}, set()),
    ],
)
def test_what_a_store_says_of_itself_is_judged(info, expected):
    sound = {
        "server_name": "valkey",
        "valkey_version": "9.1.2",
        "redis_version": "7.2.4",
        "aof_enabled": 1,
        "role": "master",
    }
    findings = Findings()
    check_settings(Settings(sound | info, "always"), findings)
    assert {found.kind for found in findings.found} == expected


def test_a_cluster_is_looked_at_node_by_node(loop_thread):
    cluster = Cluster()
    try:
        running = RunningServer(loop_thread, type(CONFIG)(**vars(CONFIG) | {"redis": cluster.url}))
        try:
            for number in range(8):
                running.stubs.create_run(f"run-{number}")
                running.stubs.add_prompts(f"run-{number}", 5)
                RunDriver(running.stubs, f"run-{number}").play(0, count=2)
            found = look(running.stubs)
            assert kinds(found) == {"persistence_off"}
            assert len({finding.problem.split()[1] for finding in found}) == 3
            raw = cluster.node_of("run-5").client
            raw.set("cur:{run-5}:w:9:attempts", "x")
            (damage,) = (f for f in look(running.stubs) if f.severity == ERROR)
            assert (damage.kind, damage.run_id) == ("column_orphaned", "run-5")
            mend(raw, [damage])
            assert look(running.stubs, "run-5") == []
            cluster.nodes[1].command("DELSLOTSRANGE", 5500, 5510)
            deadline = time.monotonic() + 10
            while "cluster_not_ok" not in kinds(found := look(running.stubs)):
                assert time.monotonic() < deadline, found
        finally:
            running.stop()
    finally:
        cluster.close()
