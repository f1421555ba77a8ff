"""Wiring: configuration, store, engine, services; start, drain and stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from curriculum_api.errors import CurriculumError, StateError
from curriculum_api.limits import MAX_MESSAGE_BYTES
from curriculum_api.v1 import operator_service_pb2, probe_service_pb2, trainer_service_pb2
from curriculum_server import logs
from curriculum_server.admission import OPERATOR_BOUNDS, STEP_BOUNDS, Admission
from curriculum_server.config import ServerConfig, read_config, split_address, without_secrets
from curriculum_server.engine.engine import Engine
from curriculum_server.health import SERVING, StoreHealth
from curriculum_server.rpc import generic_handler
from curriculum_server.security import Tokens, check_exposure, read_credentials, read_tokens
from curriculum_server.services.operator import OperatorService
from curriculum_server.services.probe import ProbeService
from curriculum_server.services.trainer import TrainerService
from curriculum_server.store.embedded import EmbeddedValkey
from curriculum_server.store.opening import open_store

SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # so that a port in use is an error, not a second listener
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # More calls of one connection wait on the caller's side.
    ("grpc.max_concurrent_streams", 100),
    # Callers that went away without a word are noticed, and with them what is held for them.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Connections that never become one, and those that nobody uses; clients connect again.
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 15 * 60_000),
    # Ends calls whose callers never take the answer; all others end within the grace.
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 2 * 60_000),
    ("grpc.max_allowed_incoming_connections", 4096),
    ("grpc.max_metadata_size", 16 * 1024),
]

GC_THRESHOLDS = (20_000, 20, 50)
"""A call makes thousands of short-lived objects and hardly a cycle: Python's default of 700 would
have the collector look through them several times per call."""

logger = logging.getLogger("curriculum_server")


@dataclass(frozen=True)
class Serving:
    """A server that answers."""

    address: str
    store: str
    metrics: str


class App:
    """One server. `start` it, let it serve, `stop` it; also used by tests, in process."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._closing = AsyncExitStack()
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=SERVER_OPTIONS)

    async def start(self) -> Serving:
        """Start everything; on an error everything that was started is stopped again.

        Raises:
            StateError: a port or directory cannot be had.
            StoreUnavailableError: the store does not answer.
        """
        try:
            return await self._start()
        except BaseException:
            await self._closing.aclose()
            raise

    async def stop(self) -> None:
        """Take no more calls, let those in flight end, stop."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self.config.drain_s)
        await self._closing.aclose()

    async def _start(self) -> Serving:
        tokens = read_tokens(self.config.tokens)
        metrics = self._start_metrics()
        url, where = await self._start_store()
        redis, version = await open_store(url)
        engine = self.engine = Engine(redis)
        self._closing.push_async_callback(engine.stop)
        steps, operators = Admission(STEP_BOUNDS), Admission(OPERATOR_BOUNDS)
        services = (
            (trainer_service_pb2, "TrainerService", TrainerService(engine), steps),
            (probe_service_pb2, "ProbeService", ProbeService(engine), steps),
            (operator_service_pb2, "OperatorService", OperatorService(engine), operators),
        )
        names: list[str] = []
        for module, name, servicer, admission in services:
            descriptor = module.DESCRIPTOR.services_by_name[name]
            names.append(descriptor.full_name)
            handler = generic_handler(descriptor, servicer, tokens, admission)
            self._server.add_generic_rpc_handlers((handler,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        shown = (health.SERVICE_NAME, reflection.SERVICE_NAME, *names)
        reflection.enable_server_reflection(shown, self._server)
        store_health = StoreHealth(self._health, redis, names)
        self._closing.push_async_callback(store_health.stop)
        address = self._bind(tokens)
        await self._start_health()
        await engine.start()
        await self._server.start()
        for name in ("", health.SERVICE_NAME, reflection.SERVICE_NAME):
            await self._health.set(name, SERVING)
        await store_health.start()
        return Serving(address, f"{version}, {where}", metrics)

    async def _start_store(self) -> tuple[str, str]:
        if self.config.redis:
            return self.config.redis, without_secrets(self.config.redis)
        valkey = EmbeddedValkey(Path(self.config.data_dir), self.config.appendfsync)
        self._closing.push_async_callback(valkey.stop)
        await valkey.start()
        return valkey.url, f"embedded, data in {valkey.data_dir}"

    def _start_metrics(self) -> str:
        """On a thread of its own, so that it answers however busy the event loop is."""
        if self.config.metrics == "off":
            return "off"
        host, port = split_address("metrics", self.config.metrics)
        try:
            server, thread = start_http_server(port, host)
        except OSError as error:
            raise StateError(
                f"metrics={self.config.metrics}: cannot listen: {error.strerror}; choose another "
                'address with --metrics HOST:PORT, or "off"'
            ) from error

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._closing.callback(close)
        return f"http://{host}:{server.server_port}/metrics"

    async def _start_health(self) -> None:
        """Besides, on a port for health alone. It goes on telling while calls are drained."""
        if self.config.health == "off":
            return
        server = grpc.aio.server(options=SERVER_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        _listen(server, "health", self.config.health)
        self._closing.push_async_callback(server.stop, None)
        await server.start()

    def _bind(self, tokens: Tokens) -> str:
        config = self.config
        host, _ = split_address("listen", config.listen)
        credentials = read_credentials(
            config.tls_server_cert, config.tls_server_key, config.tls_client_ca
        )
        if not config.allow_insecure:
            check_exposure(config.listen, host, encrypted=credentials is not None, tokens=tokens)
        return f"{host}:{_listen(self._server, 'listen', config.listen, credentials)}"


def _listen(
    server: grpc.aio.Server,
    name: str,
    address: str,
    credentials: grpc.ServerCredentials | None = None,
) -> int:
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise StateError(
            f"{name}={address}: cannot listen; is the port in use? choose another address with "
            f"--{name} HOST:PORT"
        ) from error


async def serve(config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    app = App(config)
    serving = await app.start()
    print(f"store      {serving.store}", flush=True)
    print(f"metrics    {serving.metrics}", flush=True)
    print(f"listening on {serving.address}", flush=True)
    await stopping.wait()
    logger.info("drain begun limit_s=%s", config.drain_s)
    await app.stop()
    logger.info("server stopped")


def main() -> None:
    """The command `curriculum-server`."""
    try:
        config = read_config(sys.argv[1:], os.environ)
        logs.set_up(config.log_level, as_json=config.log_json)
        gc.set_threshold(*GC_THRESHOLDS)
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            runner.run(serve(config))
    except CurriculumError as error:
        sys.exit(f"curriculum-server: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
