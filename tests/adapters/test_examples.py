"""What the examples say that a trainer's owner has to add."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "clients" / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_three_lines_are_enough_besides_imports(script) -> None:
    marked = [line for line in script.read_text().splitlines() if line.endswith("# curriculum")]
    added = [line for line in marked if not line.startswith(("import ", "from "))]
    assert 1 <= len(added) <= 3
