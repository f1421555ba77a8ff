"""One round: a cluster under load, faults one after the other, and the account at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.chaos.cluster import Cluster
from tests.chaos.faults import Fault
from tests.chaos.report import Recovery, Report

SHORTEST_CALM_S = 0.1
LONGEST_CALM_S = 0.4
"""Between a recovery and the next fault."""
LOAD_LIMIT_S = 300.0


@dataclass
class Plan:
    """What a round is: its faults in order, and on what. `acknowledged` is how many attempts it
    shall go on for at least."""

    name: str
    kinds: list[str]
    appendfsync: str = "always"
    server_count: int = 2
    embedded: bool = False
    seed: int = 0
    acknowledged: int = 0


def play(plan: Plan, known: Mapping[str, Fault], report: Report) -> None:
    """Inject the round's faults and enter what came of them."""
    if report.stopping.is_set():
        return
    try:
        cluster = Cluster(
            plan.seed,
            appendfsync=plan.appendfsync,
            server_count=plan.server_count,
            embedded=plan.embedded,
        )
    except Exception as error:  # the boundary: the other rounds are worth having
        report.problems.append(f"{plan.name}: {type(error).__name__}: {error}")
        return
    try:
        cluster.start()
        for kind in plan.kinds:
            if report.stopping.is_set():
                break
            _inject(cluster, plan, kind, known[kind], report)
        _work_on(cluster, plan.acknowledged, report)
        report.add_round(plan.name, plan.appendfsync, cluster.finish(), cluster.errors)
    except Exception as error:  # the boundary: the other rounds are worth having
        problems = [*cluster.errors, f"{type(error).__name__}: {error}"]
        report.add_round(plan.name, plan.appendfsync, cluster.verdict_or_none(), problems)
    finally:
        cluster.close()


def _inject(cluster: Cluster, plan: Plan, kind: str, fault: Fault, report: Report) -> None:
    injected = fault(cluster)
    first_s = cluster.first_answer_s(injected.workers, injected.after_s)
    cluster.wait_until_healthy(injected.after_s)
    recovery = Recovery(
        first_s - injected.began_s,
        None if injected.ready_s is None else max(0.0, first_s - injected.ready_s),
    )
    report.add_fault(plan.name, kind, injected.what, recovery, cluster.verdict())
    time.sleep(cluster.rng.uniform(SHORTEST_CALM_S, LONGEST_CALM_S))


def _work_on(cluster: Cluster, acknowledged: int, report: Report) -> None:
    """Keep the load up until so much is acknowledged."""
    deadline = time.monotonic() + LOAD_LIMIT_S
    while cluster.books.acknowledged_count < acknowledged and time.monotonic() < deadline:
        if report.stopping.wait(0.1):
            return
