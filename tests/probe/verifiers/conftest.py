"""Pools of real processes, and user code for them to import."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from curriculum_probe.verifiers.pool import VerifierPool

Open = Callable[..., Any]


@pytest.fixture
async def open_pool() -> AsyncIterator[Open]:
    """A pool with the given settings, closed after the test, which leaves no process behind."""
    before = children()
    async with AsyncExitStack() as stack:

        async def open_(**settings: Any) -> VerifierPool:
            chosen = {"process_count": 1, "timeout_s": 20.0, "memory_bytes": 2**30} | settings
            return await stack.enter_async_context(VerifierPool(**chosen))

        yield open_
    assert children() == before


@pytest.fixture
def scores(open_pool: Open) -> Open:
    """The scores of completions, by a pool of its own; None where the verifier failed."""

    async def scores_of(payload: dict[str, Any], completions: list[str]) -> list[float | None]:
        verdicts = await (await open_pool()).verify(json.dumps(payload), completions)
        assert all((verdict.score is None) == bool(verdict.because) for verdict in verdicts)
        return [verdict.score for verdict in verdicts]

    return scores_of


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write a module that can be imported, here and in the verifiers' processes."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def user_package(tmp_path: Path, user_code: Any) -> Callable[[str, str], None]:
    """Install a distribution that has these entry points."""

    def install(name: str, entry_points: str) -> None:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[curriculum_probe.verifiers]\n{entry_points}\n")

    return install


def children() -> set[int]:
    """This process' children that have not been waited for, zombies too."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # gone by now
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(entry.parent.name))
    return found


@pytest.fixture
def children_now() -> Callable[[], set[int]]:
    return children
