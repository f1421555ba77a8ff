"""The example of clients/examples as its reader starts it, with a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curriculum_api.v1 import operator_service_pb2 as op

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "clients" / "examples" / "trl_grpo.py"
ATTEMPTS_PER_STEP = 16 * 8


def test_what_a_training_adds_is_a_few_marked_lines() -> None:
    marked = [line for line in EXAMPLE.read_text().splitlines() if line.endswith("# curriculum")]
    assert len([line for line in marked if "import" not in line]) <= 3


def test_the_example_trains_and_goes_on_where_it_ended(server: Any, tmp_path: Path) -> None:
    run_id = f"sums-{os.getpid()}"

    def run(steps: int) -> int:
        """How many attempts were counted in all."""
        where = ["--server", server.address, "--run", run_id, "--out", str(tmp_path)]
        command = [sys.executable, str(EXAMPLE), *where, "--steps", str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert re.search(r"train_runtime", done.stdout)
        return server.stubs.operator.GetStats(op.GetStatsRequest(run_id=run_id)).stats.attempt_count

    assert run(3) == 3 * ATTEMPTS_PER_STEP
    assert run(5) == 5 * ATTEMPTS_PER_STEP
