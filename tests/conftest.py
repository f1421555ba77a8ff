"""A real server over a real Valkey, shared by all tests of a process; every test makes its own run."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from curriculum_api.limits import MAX_MESSAGE_BYTES
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.probe_service_pb2_grpc import ProbeServiceStub
from curriculum_api.v1.trainer_service_pb2_grpc import TrainerServiceStub
from curriculum_server.app import App
from curriculum_server.config import ServerConfig

CONFIG = ServerConfig(listen="127.0.0.1:0", metrics="off", drain_s=1)
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


class ServerThread:
    """An App on an event loop of its own, in a thread."""

    def __init__(self, config: ServerConfig) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.app = self.call(self._make(config))
        self.serving = self.call(self.app.start())

    @property
    def address(self) -> str:
        return self.serving.address

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def stop(self) -> None:
        self.call(self.app.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _make(self, config: ServerConfig) -> App:
        return App(config)


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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    thread = ServerThread(replace(CONFIG, data_dir=str(data_dir)))
    yield thread
    thread.stop()


@pytest.fixture(scope="session")
def stubs(server: ServerThread) -> Iterator[Stubs]:
    made = Stubs(server.address)
    yield made
    made.channel.close()


_numbers = itertools.count()


@pytest.fixture()
def new_run(stubs: Stubs, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Creates a run with a pool and gives its name."""

    def create(prompt_count: int = 0, domains: int = 2, **config: Any) -> str:
        run_id = f"run-{next(_numbers)}"
        selection = run_pb2.SelectionConfig(**config.pop("selection", {}))
        stubs.create_run(run_id, run_pb2.RunConfig(selection=selection, **config))
        stubs.add_prompts(run_id, prompt_count, domains)
        return run_id

    return create
