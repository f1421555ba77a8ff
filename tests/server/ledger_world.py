"""Servers over one store whose clock moves, for the ledger's state machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
import redis

from curriculum_api.v1 import run_pb2
from curriculum_server.engine import engine
from tests.conftest import CONFIG, LoopThread, RunningServer
from tests.server.driving import RunDriver
from tests.server.faketime import ClockedValkey
from tests.server.ledger_model import (
    CHANNEL,
    CHANNEL_MAX,
    OBJECTIVE,
    PASS_THRESHOLD,
    REWARD_RANGE,
    Model,
)

CALL_LIMIT_S = 20.0
SERVER_COUNT = 2


class World:
    """A store and its servers, which follow its events only when they are asked."""

    def __init__(self, thread: LoopThread, valkey: ClockedValkey, client: redis.Redis) -> None:
        self.valkey = valkey
        self.client = client
        self._thread = thread
        self._servers = [self._start() for _ in range(SERVER_COUNT)]
        self._numbers = itertools.count()

    def create_run(self, model: Model) -> str:
        """A run of the model's configuration, without prompts."""
        run_id = f"run-{next(self._numbers)}"
        config = run_pb2.RunConfig(
            reward_min=REWARD_RANGE[0],
            reward_max=REWARD_RANGE[1],
            pass_threshold=PASS_THRESHOLD,
            window_steps=model.window_steps,
            lease_ttl={"seconds": model.lease_ttl_s},
            channels=[run_pb2.Channel(name=CHANNEL, min_value=0.0, max_value=CHANNEL_MAX)],
            objective=OBJECTIVE if model.has_objective else {},
            selection=run_pb2.SelectionConfig(
                group_size=model.group_size, reach_share=0, reach_attempt_factor=1
            ),
        )
        self._servers[0].stubs.create_run(run_id, config)
        return run_id

    def server(self, run_id: str, pick: int) -> RunDriver:
        """The run through one of the servers."""
        return RunDriver(self._servers[pick % SERVER_COUNT].stubs, run_id)

    def restart(self, pick: int) -> None:
        """A server ends, and another takes its place."""
        self._servers[pick % SERVER_COUNT].stop()
        self._servers[pick % SERVER_COUNT] = self._start()

    @contextmanager
    def newcomer(self, run_id: str) -> Iterator[RunDriver]:
        """The run through a server that has just started."""
        started = self._start()
        yield RunDriver(started.stubs, run_id)
        started.stop()

    def close(self) -> None:
        for server in self._servers:
            server.stop()

    def _start(self) -> RunningServer:
        return RunningServer(self._thread, replace(CONFIG, redis=self.valkey.url))


@contextmanager
def open_world(thread: LoopThread) -> Iterator[World]:
    valkey = ClockedValkey()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "FOLLOW_INTERVAL_S", 3600.0)
        world = World(thread, valkey, valkey.start())
        yield world
        world.close()
    valkey.close()


def answer(call: Any, request: object) -> Any:
    """The response, or the name of the status with which the call was refused."""
    return _outcome(lambda: call(request, timeout=CALL_LIMIT_S))


def answers(*calls: tuple[Any, object]) -> list[Any]:
    """The answers to calls that are made at once."""
    pending = [call.future(request, timeout=CALL_LIMIT_S) for call, request in calls]
    return [_outcome(future.result) for future in pending]


def _outcome(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except grpc.RpcError as error:
        return error.code().name
