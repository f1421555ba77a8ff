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
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from curriculum_api.errors import CurriculumError, StateError
from curriculum_api.limits import MAX_MESSAGE_BYTES
from curriculum_api.v1 import operator_service_pb2, probe_service_pb2, trainer_service_pb2
from curriculum_server import logs
from curriculum_server.config import ServerConfig, read_config, split_address, without_secrets
from curriculum_server.engine.engine import Engine
from curriculum_server.rpc import generic_handler
from curriculum_server.security import Tokens, check_exposure, read_credentials, read_tokens
from curriculum_server.services.operator import OperatorService
from curriculum_server.services.probe import ProbeService
from curriculum_server.services.trainer import TrainerService
from curriculum_server.store.connection import check_server, connect
from curriculum_server.store.embedded import EmbeddedValkey

SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # so that a port in use is an error, not a second listener
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
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
        redis = connect(url)
        engine = Engine(redis)
        self._closing.push_async_callback(engine.stop)
        version = await check_server(redis)
        services = (
            (trainer_service_pb2, "TrainerService", TrainerService(engine)),
            (probe_service_pb2, "ProbeService", ProbeService(engine)),
            (operator_service_pb2, "OperatorService", OperatorService(engine)),
        )
        names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        for module, name, servicer in services:
            descriptor = module.DESCRIPTOR.services_by_name[name]
            names.append(descriptor.full_name)
            self._server.add_generic_rpc_handlers((generic_handler(descriptor, servicer, tokens),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(names, self._server)
        address = self._bind(tokens)
        await engine.start()
        await self._server.start()
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
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

    def _bind(self, tokens: Tokens) -> str:
        config = self.config
        host, _ = split_address("listen", config.listen)
        credentials = read_credentials(
            config.tls_server_cert, config.tls_server_key, config.tls_client_ca
        )
        if not config.allow_insecure:
            check_exposure(config.listen, host, encrypted=credentials is not None, tokens=tokens)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(config.listen)
            else:
                port = self._server.add_secure_port(config.listen, credentials)
        except RuntimeError as error:
            raise StateError(
                f"listen={config.listen}: cannot listen; is the port in use? choose another "
                "address with --listen HOST:PORT"
            ) from error
        return f"{host}:{port}"


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
