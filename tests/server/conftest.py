"""Runs to drive, the store's raw keys, and processes that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from curriculum_api.v1 import run_pb2
from tests.conftest import Stubs
from tests.server.driving import Refusal, RunDriver, refusal
from tests.server.processes import PlainValkey, ServerProcess


@pytest.fixture
def open_run(stubs: Stubs, new_run: Callable[..., str]) -> Callable[..., RunDriver]:
    """Creates a run with a pool and drives it."""
    return lambda *arguments, **config: RunDriver(stubs, new_run(*arguments, **config))


@pytest.fixture(scope="session")
def drive(stubs: Stubs) -> Callable[..., RunDriver]:
    """Creates an empty run of a given name and drives it."""

    def create(run_id: str, **config: Any) -> RunDriver:
        selection = run_pb2.SelectionConfig(**config.pop("selection", {}))
        stubs.create_run(run_id, run_pb2.RunConfig(selection=selection, **config))
        return RunDriver(stubs, run_id)

    return create


@pytest.fixture(scope="session")
def refused() -> Callable[..., Refusal]:
    return refusal


@pytest.fixture(scope="session")
def raw(store_url: str) -> Iterator[redis.Redis]:
    """The store, past the server."""
    client = redis.Redis.from_url(store_url)
    yield client
    client.close()


@pytest.fixture
def launch() -> Iterator[Callable[..., ServerProcess]]:
    """Starts server processes on free ports, without metrics unless told; ends them afterwards."""
    with ExitStack() as started:

        def start(*flags: str, **options: Any) -> ServerProcess:
            defaults = ["--listen", "127.0.0.1:0", "--metrics", "off"]
            process = ServerProcess(*defaults, *flags, **options)
            started.callback(process.close)
            return process

        yield start


@pytest.fixture
def connect_to() -> Iterator[Callable[[str], Stubs]]:
    """Stubs of the server at an address."""
    with ExitStack() as opened:

        def connect(address: str) -> Stubs:
            stubs = Stubs(address)
            opened.callback(stubs.channel.close)
            return stubs

        yield connect


@pytest.fixture
def plain_valkey() -> Iterator[PlainValkey]:
    valkey = PlainValkey()
    yield valkey
    valkey.close()


@pytest.fixture
def refused_untouched(refused):
    """Refuses, and compares all that is seen of the run before and after."""

    def check(run, call, request):
        before = run.seen()
        answer = refused(call, request)
        assert run.seen() == before
        return answer

    return check
