"""Every Prometheus metric. The run is a label; a prompt never is."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram

RPCS = Counter("curriculum_rpcs_total", "Calls answered", ["method", "code"])
RPC_SECONDS = Histogram(
    "curriculum_rpc_seconds",
    "Time from a decoded call to its answer",
    ["method"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 60),
)
WAITING_CALLS = Gauge("curriculum_waiting_calls", "Calls that wait for their turn to run")
PROMPTS_SERVED = Counter("curriculum_prompts_served_total", "Prompts leased", ["run", "reason"])
ATTEMPTS = Counter("curriculum_attempts_total", "Attempts counted", ["run"])
PASSES = Counter("curriculum_passes_total", "Passes counted", ["run"])
GROUPS = Counter("curriculum_groups_total", "Groups completed", ["run"])
MIXED_GROUPS = Counter(
    "curriculum_mixed_groups_total", "Completed groups with a pass and a fail", ["run"]
)
DUPLICATE_REPORTS = Counter("curriculum_duplicate_reports_total", "Repeated reports", ["run"])
STORE_REACHABLE = Gauge("curriculum_store_reachable", "1 while the store answers, else 0")
STORE_REGRESSIONS = Counter(
    "curriculum_store_regressions_total", "Times that the store went back in time", ["run"]
)
LOST_RUNS = Gauge("curriculum_lost_runs", "Runs that were there and that the store lost")
POLICY_STEP = Gauge("curriculum_policy_step", "Newest policy step named", ["run"])
POOL_PROMPTS = Gauge("curriculum_pool_prompts", "Prompts in the pool", ["run"])


def forget_run(run_id: str) -> None:
    """Drop the gauges of a deleted run."""
    for gauge in (POLICY_STEP, POOL_PROMPTS):
        with suppress(KeyError):
            gauge.remove(run_id)
