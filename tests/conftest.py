"""A real server over a real Valkey, shared by a process's tests; every test has its own run."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import grpc
import pytest
import redis

from curriculum_api.limits import MAX_MESSAGE_BYTES
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.probe_service_pb2_grpc import ProbeServiceStub
from curriculum_api.v1.trainer_service_pb2_grpc import TrainerServiceStub
from curriculum_server.app import App
from curriculum_server.config import ServerConfig
from curriculum_server.store.embedded import EmbeddedValkey
from curriculum_server.store.inventory import is_permanent
from tests import waiting

CONFIG = ServerConfig(listen="127.0.0.1:0", metrics="off", drain_s=1)
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


class LoopThread:
    """An event loop in a thread. One for all servers: grpc.aio serves one loop per process well."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def begin(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Any) -> Any:
        return self.begin(coroutine).result(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Stubs:
    """The three services of one server, as generated."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, OPTIONS)
        self.trainer = TrainerServiceStub(self.channel)
        self.probe = ProbeServiceStub(self.channel)
        self.operator = OperatorServiceStub(self.channel)

    def create_run(self, run_id: str, config: run_pb2.RunConfig | None = None) -> run_pb2.Run:
        return self.operator.CreateRun(op.CreateRunRequest(run_id=run_id, config=config)).run

    def add_prompts(self, run_id: str, count: int, domains: int = 2) -> None:
        """Prompts p0, p1, … of domains d0, d1, … in turn."""
        for start in range(0, count, 4000):
            prompts = [
                prompt_pb2.Prompt(
                    prompt_id=f"p{i}",
                    domain=f"d{i % domains}",
                    text=f"What is {i} + {i}?",
                    payload_json=f'{{"answer": {2 * i}}}',
                )
                for i in range(start, min(count, start + 4000))
            ]
            self.operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=prompts))


class RunningServer:
    """An App that serves, and a channel to it."""

    def __init__(self, thread: LoopThread, config: ServerConfig) -> None:
        self.thread = thread
        self.app = thread.call(self._make(config))
        self.serving = thread.call(self.app.start())
        self.address: str = self.serving.address
        self.stubs = Stubs(self.address)

    def stop(self) -> None:
        self.stubs.channel.close()
        self.thread.call(self.app.stop())

    async def _make(self, config: ServerConfig) -> App:
        return App(config)


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.stop()


@pytest.fixture(scope="session")
def store_url(loop_thread: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey with an append-only file, for any number of servers."""
    valkey = EmbeddedValkey(tmp_path_factory.mktemp("data"), "everysec")
    loop_thread.call(valkey.start())
    yield valkey.url
    loop_thread.call(valkey.stop())


_checked: set[bytes] = set()


@pytest.fixture(autouse=True)
def leaked_keys(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test, each key that is new in the shared store has a time to live or is one that
    lives as long as its run."""
    uses_store = "store_url" in request.fixturenames
    client = redis.Redis.from_url(request.getfixturevalue("store_url")) if uses_store else None
    yield
    if client is None:
        return
    with closing(client):
        new = set(client.scan_iter(count=10_000)) - _checked
        suspects = [key for key in new if not is_permanent(key)]
        pipe = client.pipeline(transaction=False)
        for key in suspects:
            pipe.ttl(key)
        ttls = dict(zip(suspects, pipe.execute(), strict=True))
        _checked.update(new)
    assert not [key for key, ttl in ttls.items() if ttl == -1]


@pytest.fixture(scope="session")
def server(loop_thread: LoopThread, store_url: str) -> Iterator[RunningServer]:
    running = RunningServer(loop_thread, replace(CONFIG, redis=store_url))
    yield running
    running.stop()


@pytest.fixture
def start_server(loop_thread: LoopThread, store_url: str) -> Iterator[Callable[..., RunningServer]]:
    """Starts further servers over the same store, or otherwise by `ServerConfig` fields."""
    with ExitStack() as running:

        def start(**changes: Any) -> RunningServer:
            if "data_dir" not in changes:
                changes.setdefault("redis", store_url)
            started = RunningServer(loop_thread, replace(CONFIG, **changes))
            running.callback(started.stop)
            return started

        yield start


@pytest.fixture(scope="session")
def stubs(server: RunningServer) -> Stubs:
    return server.stubs


_numbers = itertools.count()


@pytest.fixture
def new_run(stubs: Stubs) -> Callable[..., str]:
    """Creates a run with a pool and gives its name."""

    def create(prompt_count: int = 0, domains: int = 2, **config: Any) -> str:
        run_id = f"run-{next(_numbers)}"
        selection = run_pb2.SelectionConfig(**config.pop("selection", {}))
        stubs.create_run(run_id, run_pb2.RunConfig(selection=selection, **config))
        stubs.add_prompts(run_id, prompt_count, domains)
        return run_id

    return create


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """Waits for something to become true, and gives it."""
    return waiting.wait_until
