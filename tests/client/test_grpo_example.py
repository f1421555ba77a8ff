"""The GRPO of clients/examples as its reader starts it, with a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_client import TrainerClient

EXAMPLE = Path(__file__).parents[2] / "clients" / "examples" / "grpo.py"
SMALL = ("--batch", "4", "--warm-steps", "5", "--save-every", "4", "--examine-every", "1000")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

Command = Callable[..., list[str]]


@pytest.fixture
def served(start_server: Callable[..., Any]) -> Any:
    return start_server()


@pytest.fixture
def command(served: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Command:
    """The example on a run of the test's own."""
    run_id = f"grpo-{tmp_path.parent.name}-{tmp_path.name}"[:64]

    def make(*flags: str) -> list[str]:
        where = ["--server", served.address, "--run", run_id, "--out", str(tmp_path)]
        return [sys.executable, str(EXAMPLE), *where, *flags]

    return make


def run(command: list[str]) -> list[str]:
    """What it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def number(name: str, line: str) -> float:
    found = re.search(rf"\b{name} ([\d.]+)", line)
    assert found, line
    return float(found[1])


def counted_attempts(served: Any, command: list[str]) -> int:
    request = op.GetStatsRequest(run_id=run_id_of(command))
    return served.stubs.operator.GetStats(request).stats.attempt_count


def run_id_of(command: list[str]) -> str:
    return command[command.index("--run") + 1]


def served_prompts(served: Any, command: list[str], step: int) -> list[str]:
    """What was asked for before is answered as before."""
    with TrainerClient(served.address, run_id_of(command)) as client:
        batch = client.next_batch(4, policy_step=step, request_id=f"default-{step}")
    return [prompt.prompt_id for prompt in batch]


def test_what_a_trainer_adds_is_a_few_marked_lines() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert 3 <= sum(line.endswith("# curriculum") for line in lines) <= 5
    assert sum(line.endswith("# curriculum: resume") for line in lines) <= 4


def test_a_run_started_again_goes_back_to_its_checkpoint_and_repeats_what_it_did(
    served: Any, command: Command
) -> None:
    first = run(command(*SMALL, "--steps", "6"))  # and two of them after the newest checkpoint
    assert [int(number("step", line)) for line in first] == [0, 1, 2, 3, 4, 5, 6]
    assert counted_attempts(served, command()) == number("rollouts", first[-1])
    batches = [served_prompts(served, command(), step) for step in (4, 5)]

    again = run(command(*SMALL, "--steps", "7"))
    assert [int(number("step", line)) for line in again] == [4, 5, 6, 7]
    assert again[1:3] == first[-2:]  # rollouts, rewards and all
    assert [served_prompts(served, command(), step) for step in (4, 5)] == batches
    assert counted_attempts(served, command()) == number("rollouts", again[-1])


def test_a_killed_example_goes_on(served: Any, command: Command) -> None:
    with subprocess.Popen(
        command(*SMALL, "--steps", "100000"), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as killed:
        assert killed.stdout is not None
        with closing(killed.stdout):
            for line in killed.stdout:
                if number("step", line) == 5:
                    break
        killed.kill()
    lines = run(command(*SMALL, "--steps", "10"))
    first = int(number("step", lines[0]))
    assert first >= 4
    assert first % 4 == 0
    # Where it was too slow to be killed in time, there is nothing left to do.
    assert first >= 10 or counted_attempts(served, command()) == number("rollouts", lines[-1])
