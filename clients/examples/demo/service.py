"""The service of the demo: its process, its runs, and what it believes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc
from tasks import Task

from curriculum_api.v1 import operator_service_pb2 as operator
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.prompt_pb2 import Prompt
from curriculum_api.v1.run_pb2 import RunConfig, SelectionConfig
from curriculum_api.v1.stats_pb2 import RunStats

STOP_TIMEOUT_S = 15


@contextmanager
def running_server() -> Iterator[str]:
    """Starts `curriculum-server` with its embedded store on a free port, and gives its address."""
    with tempfile.TemporaryDirectory(prefix="curriculum-demo-") as data_dir:
        flags = ["--listen", "127.0.0.1:0", "--metrics", "off", "--log-level", "warning"]
        process = subprocess.Popen(
            [sys.executable, "-m", "curriculum_server.app", *flags, "--data-dir", data_dir],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield _address(process)
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        said, _, address = line.strip().partition("listening on ")
        if not said and address:
            return address
    raise RuntimeError(f"curriculum-server ended with status {process.wait()}")


def create_run(
    address: str, run_id: str, tasks: Iterable[Task], *, strategy: str, group_size: int, seed: int
) -> None:
    """Makes a run whose pool are the tasks."""
    selection = SelectionConfig(
        strategy=strategy,
        group_size=group_size,
        reach_attempt_factor=1,  # TRL gives every prompt num_generations attempts
    )
    with grpc.insecure_channel(address) as channel:
        stub = OperatorServiceStub(channel)
        config = RunConfig(selection=selection, seed=seed)
        stub.CreateRun(operator.CreateRunRequest(run_id=run_id, config=config))
        prompts = [_prompt(number, task) for number, task in enumerate(tasks)]
        stub.AddPrompts(operator.AddPromptsRequest(run_id=run_id, prompts=prompts))


def read_stats(address: str, run_id: str) -> RunStats:
    """What the service knows about a run."""
    with grpc.insecure_channel(address) as channel:
        request = operator.GetStatsRequest(run_id=run_id)
        stats: RunStats = OperatorServiceStub(channel).GetStats(request).stats
        return stats


def _prompt(number: int, task: Task) -> Prompt:
    # The service keeps a prior per domain: with a domain for each level, what it sees of some
    # prompts of a level tells it about those that it never served.
    return Prompt(
        prompt_id=f"{task.level.name}/{number}",
        domain=task.level.name,
        text=task.question,
        payload_json=json.dumps(task.payload),
        tags=[task.level.family],
    )
