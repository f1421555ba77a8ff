"""The demonstration, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = Path(__file__).parents[2] / "clients" / "examples" / "demo" / "main.py"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
@pytest.mark.timeout(300)  # about 20 s, unless the machine is busy
def test_the_quick_demo_ends_with_its_figures_and_draws_them(tmp_path: Path) -> None:
    command = [sys.executable, str(MAIN), "--steps", "8", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary = json.loads(done.stdout.splitlines()[-1])
    rates = {name for name in summary if name.startswith(("mixed_fraction_", "heldout_"))}
    assert rates == {
        "mixed_fraction_edge",
        "mixed_fraction_uniform",
        "heldout_edge",
        "heldout_uniform",
        "heldout_before",
    }
    assert all(0.0 <= summary[name] <= 1.0 for name in rates)
    assert summary["rollouts"] == 8 * 8 * 8
    assert summary["seconds"] > 0.0
    assert (tmp_path / "demo.png").read_bytes().startswith(PNG_SIGNATURE)
