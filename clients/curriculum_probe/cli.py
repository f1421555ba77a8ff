"""The command `curriculum-probe`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager

from prometheus_client import start_http_server

from curriculum_api.channel import TlsConfig
from curriculum_api.errors import CurriculumError, InvalidRequestError
from curriculum_probe.arguments import parser
from curriculum_probe.embedding import check_embeds, embed_prompts
from curriculum_probe.engines import (
    Engine,
    EngineConfig,
    EngineError,
    create_engine,
)
from curriculum_probe.patience import Patience
from curriculum_probe.sampling import Sampling, Watch, chosen
from curriculum_probe.service import Service
from curriculum_probe.verifiers.pool import VerifierPool
from curriculum_probe.worker import Plan, Worker, check_run

STOPS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Probe until stopped; the exit code."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        _probe(options)
    except (CurriculumError, EngineError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 1
    return 0


def _probe(options: argparse.Namespace) -> None:
    if options.embed:
        check_embeds(options.engine)
    stop = threading.Event()
    patience = Patience(options.patience, stop)
    token = options.token or os.environ.get("CURRICULUM_TOKEN", "")
    tls = TlsConfig.from_files(ca=options.tls_ca, cert=options.tls_cert, key=options.tls_key)
    connected = Service(options.server, options.run, patience=patience, token=token, tls=tls)
    with closing(connected) as service:
        run = service.run()
        check_run(run)  # before anything takes minutes to load
        sampling = chosen(run, {name: getattr(options, name) for name in vars(Sampling())})
        logger.info("sampling run=%s %s", run.run_id, sampling)
        with _metrics_served(options.metrics):
            asyncio.run(_work(options, sampling, service, patience, stop))


async def _work(
    options: argparse.Namespace,
    sampling: Sampling,
    service: Service,
    patience: Patience,
    stop: threading.Event,
) -> None:
    plan = Plan(
        run_id=options.run,
        prompt_count=options.prompts,
        attempt_count=options.attempts,
        policy_step=0 if options.reference else options.policy_step,
        is_reference=options.reference,
        round_count=options.rounds,
        drain_s=options.drain,
    )
    pool = VerifierPool(
        process_count=options.verifier_processes,
        timeout_s=options.verifier_timeout,
        memory_bytes=options.verifier_memory * 2**20,
        defaults=dict(options.verifier_default),
    )
    # Until there is a worker nothing is held, and a signal ends the process.
    engine = create_engine(options.engine, _engine_config(options, sampling), patience)
    async with _closed(engine), pool as verifiers, _watched(sampling, service):
        worker = Worker(plan, service, engine, verifiers, stop=stop)
        with _stopped_by_signals(worker.stop):
            if options.embed:
                await embed_prompts(service, engine, stop)
            if not stop.is_set():
                await worker.run()


def _engine_config(options: argparse.Namespace, sampling: Sampling) -> EngineConfig:
    return EngineConfig(
        **vars(sampling),
        model=options.model,
        concurrency=options.concurrency,
        endpoint=options.endpoint,
        api_key=options.api_key or os.environ.get("OPENAI_API_KEY", ""),
        options=dict(options.engine_option),
    )


@contextmanager
def _metrics_served(address: tuple[str, int] | None) -> Iterator[None]:
    if address is None:
        yield
        return
    host, port = address
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise InvalidRequestError(f"metrics={host}:{port}: {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@asynccontextmanager
async def _closed(engine: Engine) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await engine.close()


@asynccontextmanager
async def _watched(sampling: Sampling, service: Service) -> AsyncIterator[None]:
    looking = asyncio.create_task(Watch(sampling).keep_looking(service.run))
    try:
        yield
    finally:
        looking.cancel()


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first signal stops the worker, a second one ends the process."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in STOPS}

    def handle() -> None:
        for number in STOPS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop()

    for number in STOPS:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
