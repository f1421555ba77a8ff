"""The command `curriculum-probe`."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from curriculum_api import limits
from curriculum_api.channel import TlsConfig
from curriculum_api.errors import CurriculumError
from curriculum_probe.engines import ENGINES, EngineConfig, EngineError, create_engine
from curriculum_probe.patience import Patience
from curriculum_probe.service import Service
from curriculum_probe.worker import Plan, Worker

MAX_CONCURRENCY = limits.MAX_REPORT_ATTEMPTS // limits.MAX_GROUP_SIZE
"""What is sampled together is one report, whatever the prompts' attempt counts are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Probe until stopped; the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    try:
        with _stopped_by_signals(stop):
            _probe(options, stop)
    except (CurriculumError, EngineError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 1
    return 0


def _probe(options: argparse.Namespace, stop: threading.Event) -> None:
    patience = Patience(options.patience, stop)
    config = EngineConfig(
        model=options.model,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        concurrency=options.concurrency,
        endpoint=options.endpoint,
        api_key=options.api_key or os.environ.get("OPENAI_API_KEY", ""),
    )
    plan = Plan(
        run_id=options.run,
        prompt_count=options.prompts,
        chunk_size=options.concurrency,
        attempt_count=options.attempts,
        policy_step=options.policy_step,
        round_count=options.rounds,
    )
    token = options.token or os.environ.get("CURRICULUM_TOKEN", "")
    engine = create_engine(options.engine, config, patience)
    tls = TlsConfig.from_files(ca=options.tls_ca, cert=options.tls_cert, key=options.tls_key)
    connected = Service(options.server, options.run, patience=patience, token=token, tls=tls)
    with closing(connected) as service:
        Worker(plan, service, engine, stop).run()


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """The first signal lets the chunk in hand finish, a second one ends the process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curriculum-probe",
        description="Samples a run's prompts only to refresh what is believed of them.",
    )
    _add_server(parser.add_argument_group("server"))
    _add_engine(parser.add_argument_group("engine"))
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
    add("--endpoint", default="", metavar="URL", help="such as http://localhost:8000/v1")
    add("--api-key", help="the endpoint's; or OPENAI_API_KEY")
    add("--model", required=True, help="its name at the endpoint")
    add("--max-tokens", type=_whole(1), default=256, help="per completion; %(default)s")
    add("--temperature", type=_number, default=1.0, help="as the trainer's; %(default)s")
    help_text = "prompts sampled at a time, and reported together; %(default)s"
    add("--concurrency", type=_whole(1, MAX_CONCURRENCY), default=32, help=help_text)


def _add_work(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    prompts, attempts = _whole(1, limits.MAX_BATCH_PROMPTS), _whole(1, limits.MAX_GROUP_SIZE)
    add("--prompts", type=prompts, default=32, help="leased per round; %(default)s")
    add("--attempts", type=attempts, help="per prompt; the run's group size")
    help_text = "of the weights that are sampled; the newest published policy's"
    add("--policy-step", type=_whole(0, limits.MAX_POLICY_STEP), help=help_text)
    help_text = "seconds to wait for a server or endpoint that is away; %(default)g"
    add("--patience", type=_number, default=60.0, help=help_text)
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
