"""What the tests of adapters have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1.stats_pb2 import RunStats
from curriculum_client import TrainerClient
from curriculum_client.adapters import _process

NEEDS = {
    "test_atropos.py": "atroposlib",
    "test_verl.py": "verl",
    "test_verl_settings.py": "verl",
    "test_verl_sampler.py": "verl",
}
collect_ignore = [file for file, library in NEEDS.items() if find_spec(library) is None]
"""Those that import their trainer, where it is missing; named on the command line they fail."""


@pytest.fixture
def stats(stubs: Any) -> Callable[[str], RunStats]:
    """What a run has counted."""
    return lambda run_id: stubs.operator.GetStats(op.GetStatsRequest(run_id=run_id)).stats


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Begins a process, as far as adapters can tell: new_process(RUN="math", SERVER=address). What
    is not given is as it was in the one before."""
    clients: list[TrainerClient] = []

    def begin(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"CURRICULUM_{name}", value)
        _process.client.cache_clear()
        clients.append(_process.client())

    yield begin
    for client in clients:
        client.close()
    _process.client.cache_clear()


@pytest.fixture
def use(server: Any, new_process: Callable[..., None]) -> Callable[[str], None]:
    """Begins a process that trains on a run of the server's."""
    return lambda run_id: new_process(RUN=run_id, SERVER=server.address)
