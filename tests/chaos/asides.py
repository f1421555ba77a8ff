"""Faults that a store does not survive whole, each on a run of its own: what is lost is measured
and said, and the server must notice instead of serving what its store no longer holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from curriculum_api import errors
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import trainer_service_pb2 as tr
from tests.chaos.cluster import Cluster
from tests.chaos.load import RUN_ID
from tests.chaos.proxy import Proxy
from tests.chaos.stores import Store, replica_of
from tests.conftest import Stubs

UNSYNCED_S = 0.5
"""How long the store acknowledges what its replica does not get."""
SOON_S = 5.0
"""By then a server must have noticed that its store is another one."""


@dataclass(frozen=True)
class Aside:
    """What came of it. `problems` are what must not be."""

    what: str
    lost: int = 0
    figures: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def unsynced_failover(seed: int) -> Aside:
    """The store dies and a replica takes over that has not got its last writes."""
    cluster = Cluster(seed)
    try:
        # What was leased or reported in the lost time is unknown to the new store.
        cluster.start(forgives=lambda error: isinstance(error, errors.NotFoundError))
        before = cluster.books.acknowledged_count
        _fail_over_unsynced(cluster)
        failed_s = time.monotonic()
        cluster.wait_until_healthy(failed_s)
        verdict = cluster.finish()
        problems = list(cluster.errors)
        if verdict.double:
            problems.append(f"{verdict.double} attempts were counted twice")
        problems += [
            f"the server at {server.address} did not say that its store lost events"
            for server in cluster.servers
            if "store lost events" not in server.log
        ]
        figures = {"acknowledged": verdict.acknowledged, "acknowledged_before": before}
        what = f"failover to a replica {UNSYNCED_S:g} s behind"
        return Aside(what, verdict.lost, figures, problems)
    finally:
        cluster.close()


def _fail_over_unsynced(cluster: Cluster) -> None:
    primary = cluster.store
    wire = Proxy(primary.address)
    try:
        replica = replica_of(primary, cluster.new_folder("store"), "always", through=wire.address)
        wire.stall()
        time.sleep(UNSYNCED_S)
        primary.kill()
    finally:
        wire.close()  # with what it holds
    replica.client.replicaof("NO", "ONE")
    cluster.store_proxy.switch(replica.address)
    cluster.adopt_store(replica)


def emptied_store(seed: int) -> Aside:
    """The store comes back without its data. The run's server must say that data is lost, to every
    call, and not go on from what it has in memory."""
    cluster = Cluster(seed, server_count=1)
    try:
        cluster.start()
        for worker in cluster.workers:
            worker.finish()
        for worker in cluster.workers:
            worker.join()
        stubs, step = cluster.stubs(cluster.servers[0]), cluster.steps.now
        held = _lease(stubs, "held", step)
        _empty(cluster.store)
        calls: dict[str, Callable[[], object]] = {
            "NextBatch": lambda: _lease(stubs, "new", step),
            "NextBatch again": lambda: _lease(stubs, "held", step),
            "ReportOutcomes": lambda: _report(stubs, held),
            "GetRun": lambda: stubs.operator.GetRun(op.GetRunRequest(run_id=RUN_ID)),
            "GetStats": lambda: stubs.operator.GetStats(op.GetStatsRequest(run_id=RUN_ID)),
        }
        codes = {name: _code(call) for name, call in calls.items()}
        problems = [f"{name}: {code}" for name, code in codes.items() if code != "DATA_LOSS"]
        return Aside("store restarted empty", figures={"codes": codes}, problems=problems)
    finally:
        cluster.close()


def _empty(store: Store) -> None:
    store.kill()
    store.empty()
    store.start()


def _lease(stubs: Stubs, request_id: str, step: int) -> tr.NextBatchResponse:
    return stubs.trainer.NextBatch(
        tr.NextBatchRequest(run_id=RUN_ID, request_id=request_id, prompt_count=4, policy_step=step)
    )


def _report(stubs: Stubs, held: tr.NextBatchResponse) -> object:
    batch = held.batch
    request = tr.ReportOutcomesRequest(
        run_id=RUN_ID,
        request_id="held",
        batch_id=batch.batch_id,
        timeline=batch.timeline,
        policy_step=batch.policy_step,
    )
    request.outcomes.slots.append(0)
    request.outcomes.rewards.append(1.0)
    return stubs.trainer.ReportOutcomes(request)


def _code(call: Callable[[], object]) -> str:
    """How the call ends, once the server has found its store again."""
    deadline = time.monotonic() + SOON_S
    while True:
        try:
            call()
        except grpc.RpcError as error:
            code = error.code().name
            if code != "UNAVAILABLE" or time.monotonic() > deadline:
                return code
            time.sleep(0.1)
        else:
            return "OK"
