"""The service over a cluster: three primaries, slots that move, a primary that changes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import grpc
import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import run_pb2
from tests.server.clusters import Cluster, slot_of, wait_for
from tests.server.driving import RunDriver
from tests.server.loads import GROUP_SIZE, Load

RUN_IDS = [f"math-{n}" for n in range(6)]
"""Two of them on each third of the slots."""


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    yield made
    made.close()


@pytest.fixture
def servers(cluster, start_server):
    """Two servers, each told of another node."""
    return [start_server(redis=node.url) for node in cluster.nodes[1:3]]


@pytest.fixture
def runs(servers):
    """Runs on every node, through the first server; deleted afterwards."""
    drivers = [make_run(servers[0], run_id) for run_id in RUN_IDS]
    yield drivers
    for driver in drivers:
        driver.delete()


def make_run(server, run_id, prompt_count=60):
    config = run_pb2.RunConfig(selection=run_pb2.SelectionConfig(group_size=GROUP_SIZE))
    server.stubs.create_run(run_id, config)
    server.stubs.add_prompts(run_id, prompt_count)
    return RunDriver(server.stubs, run_id)


def keys_by_node(cluster, run):
    pattern = f"cur:{{{run.run_id}}}:*"
    found = {node.port: list(node.client.scan_iter(pattern, 1000)) for node in cluster.nodes[:3]}
    return {port: keys for port, keys in found.items() if keys}


def listed(server):
    answer = server.stubs.operator.ListRuns(op.ListRunsRequest(page_size=100))
    return [run.run_id for run in answer.runs]


def test_a_server_finds_out_that_its_store_is_a_cluster(servers):
    assert all(server.serving.store.startswith("valkey ") for server in servers)
    assert all(" cluster, redis://" in server.serving.store for server in servers)


def test_runs_are_spread_and_each_lies_on_one_node(cluster, servers, runs):
    for run in runs:
        run.play(0)
        assert list(keys_by_node(cluster, run)) == [cluster.node_of(run.run_id).port]
    assert len({cluster.node_of(run_id).port for run_id in RUN_IDS}) == 3
    assert listed(servers[0]) == listed(servers[1]) == RUN_IDS


def test_a_whole_life_goes_as_on_one_server(cluster, servers, runs, open_run):
    """Step by step the same batches and views as over a store that is no cluster."""
    config = {"selection": {"group_size": GROUP_SIZE}}
    for run, other in ((run, open_run(60, **config)) for run in runs):
        for driver in (run, other):
            for step in range(3):
                driver.play(step)
            driver.checkpoint("c", 2)
            driver.play(3)
            driver.rollback("c")
            driver.release(driver.next("held", count=3, step=3))
            batch = driver.probes("probe", count=3, step=3).batch
            driver.report_probes(batch, {0: [1.0], 1: [0.0]})
            driver.publish(3, "/weights")
        assert run.through(servers[1].stubs).seen() == run.seen()
        assert run.counts() == other.counts()
        assert run.get().checkpoints == other.get().checkpoints
        assert run.stats() == other.stats()


def test_a_deleted_run_leaves_no_key_on_any_node_and_the_others_alone(cluster, servers, runs):
    run = make_run(servers[0], "short")
    run.play(0)
    assert keys_by_node(cluster, run)
    run.delete()
    for port, keys in keys_by_node(cluster, run).items():
        client = next(node.client for node in cluster.nodes if node.port == port)
        assert all(client.ttl(key) > 0 for key in keys), keys
    assert listed(servers[1]) == RUN_IDS


def test_a_run_is_deleted_whole_while_its_slot_lies_on_two_nodes(cluster, servers, refused):
    """Keys on both nodes: it is refused until the slot has moved, and then leaves nothing."""
    run = make_run(servers[0], "between")
    run.play(0)
    source, slot = cluster.node_of(run.run_id), slot_of(run.run_id)
    target = next(node for node in cluster.nodes[:3] if node is not source)
    begin_move(slot, source, target)
    meta = f"cur:{{{run.run_id}}}:meta"
    others = [k for k in source.command("GETKEYSINSLOT", slot, 100) if k != meta.encode()]
    source.client.migrate("127.0.0.1", target.port, others, 0, 5000)
    answer = refused(run.stubs.operator.DeleteRun, op.DeleteRunRequest(run_id=run.run_id))
    assert (answer.status, answer.error) == ("UNAVAILABLE", "StoreUnavailableError")
    assert answer.details.startswith("the cluster is being changed")
    move_key_by_key(slot, source, target)
    run.delete()
    left = target.command("GETKEYSINSLOT", slot, 100)
    assert all(target.client.ttl(key) > 0 for key in left), left


def test_two_servers_over_a_cluster_never_lease_a_prompt_twice(servers, runs):
    for run in runs[:3]:
        pair = cycle([run, run.through(servers[1].stubs)])
        asks = [(server, f"b{n}") for n, server in zip(range(20), pair, strict=False)]
        with ThreadPoolExecutor(8) as callers:
            batches = list(callers.map(lambda ask: ask[0].next(ask[1], count=3), asks))
        served = [p.prompt.prompt_id for batch in batches for p in batch.prompts]
        assert len(served) == len(set(served)) == 60


def loaded(servers, runs):
    """Trainers on every run, each run through both servers."""
    return Load([run.through(server.stubs) for run in runs for server in servers])


def check_counts(load, servers, runs):
    assert load.twice == []
    for run in runs:
        for view in (run, run.through(servers[1].stubs)):
            assert view.stats().attempt_count == load.attempts[run.run_id]
            assert sum(n for n, _ in view.counts().values()) == load.attempts[run.run_id]


def begin_move(slot, source, target):
    target.command("SETSLOT", slot, "IMPORTING", source.node_id)
    source.command("SETSLOT", slot, "MIGRATING", target.node_id)


def move_key_by_key(slot, source, target):
    begin_move(slot, source, target)
    while keys := source.command("GETKEYSINSLOT", slot, 3):
        source.client.migrate("127.0.0.1", target.port, keys, 0, 5000)
        time.sleep(0.005)  # so that calls meet a slot that lies on two nodes
    for node in (target, source):
        node.command("SETSLOT", slot, "NODE", target.node_id)


def move_at_once(slot, source, target):
    source.command("MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.node_id)


@pytest.mark.parametrize("move", [move_key_by_key, move_at_once])
def test_a_slot_that_moves_under_load_loses_and_doubles_nothing(cluster, servers, runs, move):
    moved, stays = runs[0], runs[1]
    source = cluster.node_of(moved.run_id)
    target = next(node for node in cluster.nodes[:3] if node is not source)
    with loaded(servers, [moved, stays]) as load:
        load.wait_for_progress()
        move(slot_of(moved.run_id), source, target)
        wait_for(lambda: cluster.node_of(moved.run_id) is target)
        load.wait_for_progress()
    assert list(keys_by_node(cluster, moved)) == [target.port]
    check_counts(load, servers, [moved, stays])


def test_a_primary_that_gives_way_under_load_loses_and_doubles_nothing(cluster, servers, runs):
    replica = cluster.nodes[3]
    primary = cluster.nodes[0]
    held = [run for run in runs if cluster.node_of(run.run_id) is primary]
    assert held
    with loaded(servers, held) as load:
        load.wait_for_progress()
        for new, old in ((replica, primary), (primary, replica)):
            new.command("FAILOVER")
            wait_for(lambda new=new: new.client.info("replication")["role"] == "master")
            load.wait_for_progress()
            wait_for(
                lambda old=old: old.client.info("replication").get("master_link_status") == "up"
            )
    check_counts(load, servers, held)


def test_a_slot_that_nobody_holds_is_unavailable_until_somebody_does(
    cluster, servers, runs, start_server, refused
):
    """Also for a server that is told so as it starts."""
    run = runs[0]
    run.play(0)
    before, holder, slot = run.seen(), cluster.node_of(run.run_id), slot_of(run.run_id)
    for node in cluster.nodes[:3]:
        node.command("DELSLOTS", slot)
    late = run.through(start_server(redis=cluster.url).stubs)
    try:
        for driver in (run, late):
            request = op.GetStatsRequest(run_id=run.run_id)
            answer = refused(driver.stubs.operator.GetStats, request)
            assert (answer.status, answer.error) == ("UNAVAILABLE", "StoreUnavailableError")
    finally:
        holder.command("ADDSLOTS", slot)
        wait_for(lambda: all(n.info()["cluster_state"] == "ok" for n in cluster.nodes))
    for driver in (run, late):
        assert answered(driver.seen) == before


def answered(call):
    """The call's answer, repeated until there is one, as the clients do."""

    def attempt():
        try:
            return call()
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017
            return None

    return wait_for(attempt)


def test_a_primary_that_dies_is_followed_by_its_replica(cluster, servers, runs):
    """Replication is asynchronous, so the last counts may be lost; what is left agrees."""
    primary, replica = cluster.nodes[0], cluster.nodes[3]
    run = next(run for run in runs if cluster.node_of(run.run_id) is primary)
    other = run.through(servers[1].stubs)
    run.play(0)
    written = primary.client.info("replication")["master_repl_offset"]
    wait_for(lambda: replica.client.info("replication")["slave_repl_offset"] >= written)
    primary.kill()
    assert answered(lambda: run.play(1)).prompts
    assert answered(other.stats) == answered(run.stats)
    assert answered(other.counts) == answered(run.counts)
    primary.start()
    wait_for(lambda: primary.client.info("replication").get("master_link_status") == "up")
