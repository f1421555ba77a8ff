"""The GRPO of clients/examples as its reader starts it, with a real server."""

from __future__ import annotations

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
WITH_DATASET = EXAMPLE.with_name("grpo_dataset.py")
SMALL = ("--batch", "4", "--warm-steps", "5", "--save-every", "4")

Command = Callable[..., list[str]]


@pytest.fixture
def served(start_server: Callable[..., Any]) -> Any:
    return start_server()


@pytest.fixture
def command(served: Any, tmp_path: Path) -> Command:
    """An example on a run of the test's own."""
    run_id = f"grpo-{tmp_path.parent.name}-{tmp_path.name}"[:64]

    def make(*flags: str, example: Path = EXAMPLE) -> list[str]:
        where = ["--server", served.address, "--run", run_id, "--out", str(tmp_path)]
        return [sys.executable, str(example), *where, *flags]

    return make


def run(command: list[str]) -> list[str]:
    """What it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def trained(lines: list[str]) -> list[str]:
    """The lines of steps, without those of examinations."""
    return [line for line in lines if "held out" not in line]


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


@pytest.mark.parametrize(("example", "imports"), [(EXAMPLE, 1), (WITH_DATASET, 2)])
def test_what_a_trainer_adds_is_three_marked_lines_and_imports(example: Path, imports: int) -> None:
    marked = [line for line in example.read_text().splitlines() if line.endswith("# curriculum")]
    assert len([line for line in marked if line.startswith("from ")]) == imports
    assert len(marked) == imports + 3
    resuming = example.read_text().count("  # curriculum: resume\n")
    assert resuming == (4 if example == EXAMPLE else 0)


def test_a_run_started_again_goes_back_to_its_checkpoint_and_repeats_what_it_did(
    served: Any, command: Command
) -> None:
    first = trained(run(command(*SMALL, "--steps", "6")))  # two of them after the last checkpoint
    assert [int(number("step", line)) for line in first] == [1, 2, 3, 4, 5, 6]
    assert counted_attempts(served, command()) == number("rollouts", first[-1])
    batches = [served_prompts(served, command(), step) for step in (4, 5)]

    again = trained(run(command(*SMALL, "--steps", "7")))
    assert [int(number("step", line)) for line in again] == [5, 6, 7]
    assert again[:2] == first[-2:]  # rollouts, rewards and all
    assert [served_prompts(served, command(), step) for step in (4, 5)] == batches
    assert counted_attempts(served, command()) == number("rollouts", again[-1])


def test_a_killed_example_goes_on(served: Any, command: Command) -> None:
    with subprocess.Popen(
        command(*SMALL, "--steps", "100000"), stdout=subprocess.PIPE, text=True
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


def test_the_example_ends_with_the_reason_when_there_is_nothing_to_serve(
    served: Any, command: Command, tmp_path: Path
) -> None:
    run(command("--warm-steps", "0", "--steps", "0"))
    (tmp_path / f"{run_id_of(command())}.pt").unlink()  # to begin anew, with these prompts taken:
    with TrainerClient(served.address, run_id_of(command()), consumer="another") as other:
        taken = other.next_batch(4096, policy_step=0)
    failed = subprocess.run(command(*SMALL), capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert f"nothing to serve: 0 of 4: {len(taken)} prompts are leased" in failed.stderr


def test_the_training_with_a_dataset_counts_what_it_made(served: Any, command: Command) -> None:
    lines = trained(run(command(*SMALL, "--steps", "5", example=WITH_DATASET)))
    assert [int(number("step", line)) for line in lines] == [1, 2, 3, 4, 5]
    request = op.GetStatsRequest(run_id=run_id_of(command()))
    stats = served.stubs.operator.GetStats(request).stats
    assert stats.attempt_count == number("rollouts", lines[-1]) == 5 * 4 * 8
    assert stats.leased_prompt_count == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_learns(command: Command) -> None:
    lines = run(command("--steps", "40"))
    before, *_, after = (number("held out", line) for line in lines if "held out" in line)
    assert after > before + 0.2
