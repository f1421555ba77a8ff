"""The example of clients/examples as its reader starts it, with a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.adapter]

EXAMPLE = Path(__file__).parents[2] / "clients" / "examples" / "trl_grpo.py"
ATTEMPTS_PER_STEP = 16 * 8


def test_the_example_trains_and_goes_on_where_it_ended(
    server: Any, stats: Any, tmp_path: Path
) -> None:
    run_id = f"sums-{os.getpid()}"

    def run(steps: int) -> int:
        """How many attempts were counted in all."""
        where = ["--server", server.address, "--run", run_id, "--out", str(tmp_path)]
        command = [sys.executable, str(EXAMPLE), *where, "--steps", str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert re.search(r"train_runtime", done.stdout)
        return stats(run_id).attempt_count

    assert run(3) == 3 * ATTEMPTS_PER_STEP
    assert run(5) == 5 * ATTEMPTS_PER_STEP
