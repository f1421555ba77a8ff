"""The command `curriculum-probe`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

from prometheus_client import start_http_server

from curriculum_api import limits
from curriculum_api.channel import TlsConfig
from curriculum_api.errors import CurriculumError, InvalidRequestError
from curriculum_probe.engines import ENGINES, Engine, EngineConfig, EngineError, create_engine
from curriculum_probe.patience import Patience
from curriculum_probe.service import Service
from curriculum_probe.verifiers.pool import VerifierPool
from curriculum_probe.worker import Plan, Worker, check_run

MAX_CONCURRENCY = 65_536
STOPS = (signal.SIGTERM, signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> int:
    """Probe until stopped; the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        _probe(options)
    except (CurriculumError, EngineError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 1
    return 0


def _probe(options: argparse.Namespace) -> None:
    stop = threading.Event()
    patience = Patience(options.patience, stop)
    token = options.token or os.environ.get("CURRICULUM_TOKEN", "")
    tls = TlsConfig.from_files(ca=options.tls_ca, cert=options.tls_cert, key=options.tls_key)
    connected = Service(options.server, options.run, patience=patience, token=token, tls=tls)
    with closing(connected) as service:
        check_run(service.run())  # before anything takes minutes to load
        with _metrics_served(options.metrics):
            asyncio.run(_work(options, service, patience, stop))


async def _work(
    options: argparse.Namespace, service: Service, patience: Patience, stop: threading.Event
) -> None:
    plan = Plan(
        run_id=options.run,
        prompt_count=options.prompts,
        attempt_count=options.attempts,
        policy_step=options.policy_step,
        round_count=options.rounds,
        drain_s=options.drain,
    )
    pool = VerifierPool(
        process_count=options.verifier_processes,
        timeout_s=options.verifier_timeout,
        memory_bytes=options.verifier_memory * 2**20,
    )
    # Until there is a worker nothing is held, and a signal ends the process.
    engine = create_engine(options.engine, _engine_config(options), patience)
    async with _closed(engine), pool as verifiers:
        worker = Worker(plan, service, engine, verifiers, stop=stop)
        with _stopped_by_signals(worker.stop):
            await worker.run()


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        model=options.model,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        concurrency=options.concurrency,
        top_p=options.top_p,
        stop=tuple(options.stop),
        chat=options.chat,
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curriculum-probe",
        description="Samples a run's prompts only to refresh what is believed of them.",
    )
    _add_server(parser.add_argument_group("server"))
    _add_engine(parser.add_argument_group("engine"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_verifiers(parser.add_argument_group("verifiers"))
    _add_work(parser.add_argument_group("work"))
    return parser


def _add_server(group: argparse._ArgumentGroup) -> None:
    server = os.environ.get("CURRICULUM_SERVER", f"localhost:{limits.DEFAULT_PORT}")
    add = group.add_argument
    add("--server", default=server, metavar="HOST:PORT", help="or CURRICULUM_SERVER; %(default)s")
    add("--run", required=True, help="the run to probe")
    add("--token", help="a prober's; or CURRICULUM_TOKEN")
    for name, what in (
        ("CA", "encrypt, and trust this CA"),
        ("CERT", "encrypt, and show this certificate"),
        ("KEY", "its key"),
    ):
        variable = f"CURRICULUM_TLS_{name}"
        default, help_text = os.environ.get(variable) or None, f"{what}, PEM; or {variable}"
        add(f"--tls-{name.lower()}", type=Path, metavar="FILE", default=default, help=help_text)


def _add_engine(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--engine", required=True, help=f"one of {', '.join(ENGINES)}")
    help_text = "a folder or name of weights to start from, or the name at the endpoint"
    add("--model", required=True, help=help_text)
    add("--endpoint", default="", metavar="URL", help="such as http://localhost:8000/v1")
    add("--api-key", help="the endpoint's; or OPENAI_API_KEY")
    help_text = "attempts sampled at a time; %(default)s"
    add("--concurrency", type=_whole(1, MAX_CONCURRENCY), default=256, help=help_text)
    help_text = "what the engine takes besides, such as tensor_parallel_size=2; repeatable"
    add("--engine-option", type=_option, action="append", default=[], help=help_text, metavar="K=V")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--max-tokens", type=_whole(1), default=256, help="per completion; %(default)s")
    add("--temperature", type=_number, default=1.0, help="as the trainer's; %(default)s")
    add("--top-p", type=_share, default=1.0, help="likewise; %(default)s")
    help_text = "text at which a completion ends, which it then lacks; repeatable"
    add("--stop", action="append", default=[], help=help_text)
    help_text = "prompts are a user's messages, for the model's chat template"
    add("--chat", action="store_true", help=help_text)


def _add_verifiers(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    processes = max(1, min(8, os.cpu_count() or 1))
    add("--verifier-processes", type=_whole(1, 1024), default=processes, help="%(default)s")
    help_text = "seconds for one completion; %(default)g"
    add("--verifier-timeout", type=_positive, default=10.0, help=help_text)
    help_text = "MiB of address space per process; %(default)s"
    add("--verifier-memory", type=_whole(64), default=4096, metavar="MIB", help=help_text)


def _add_work(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    prompts, attempts = _whole(1, limits.MAX_BATCH_PROMPTS), _whole(1, limits.MAX_GROUP_SIZE)
    add("--prompts", type=prompts, default=32, help="leased at a time; %(default)s")
    add("--attempts", type=attempts, help="per prompt; the run's group size")
    help_text = (
        "of the weights that are sampled, which then stay; else those of the newest published "
        "policy are loaded, or believed to be at the endpoint"
    )
    add("--policy-step", type=_whole(0, limits.MAX_POLICY_STEP), help=help_text)
    help_text = "seconds to wait for a server or endpoint that is away; %(default)g"
    add("--patience", type=_number, default=60.0, help=help_text)
    help_text = "seconds to finish what is being sampled when stopped; %(default)g"
    add("--drain", type=_number, default=30.0, help=help_text)
    add("--metrics", type=_address, metavar="HOST:PORT", help="where Prometheus reads; off")
    rounds = group.add_mutually_exclusive_group()
    rounds.add_argument("--rounds", type=_whole(1), help="leave after so many; else when stopped")
    help_text = "leave after one round"
    rounds.add_argument("--once", dest="rounds", action="store_const", const=1, help=help_text)


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    allowed = f"at least {low}" if high is None else f"in [{low}, {high}]"

    def parse(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() else -1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number {allowed}")
        return value

    return parse


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 0")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be in (0, 1]")
    return value


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host:
        raise argparse.ArgumentTypeError(f"{text}: must be HOST:PORT")
    return host.strip("[]"), _whole(1, 65_535)(port)


def _option(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text}: must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
