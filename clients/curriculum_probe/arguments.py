"""The arguments of the command `curriculum-probe`."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from curriculum_api import limits
from curriculum_probe.engines import EMBEDDERS, ENGINES
from curriculum_probe.sampling import Sampling

MAX_CONCURRENCY = 65_536
SAMPLING_HELP = "As the run says that its trainer samples; flags are for what it does not say."


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="curriculum-probe",
        description="Samples a run's prompts only to refresh what is believed of them.",
    )
    _add_server(made.add_argument_group("server"))
    _add_engine(made.add_argument_group("engine"))
    _add_sampling(made.add_argument_group("sampling", SAMPLING_HELP))
    _add_verifiers(made.add_argument_group("verifiers"))
    _add_work(made.add_argument_group("work"))
    return made


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
    add("--engine-option", type=option, action="append", default=[], help=help_text, metavar="K=V")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    usual = Sampling()
    add("--max-tokens", type=_whole(1), help=f"per completion; {usual.max_tokens}")
    add("--temperature", type=_number, help=f"0 is greedy; {usual.temperature:g}")
    add("--top-p", type=_share, help=f"in (0, 1]; {usual.top_p:g}")
    help_text = "text at which a completion ends, which it then lacks; repeatable"
    add("--stop", action="append", help=help_text)
    help_text = "whether prompts are a user's messages, for the model's chat template; no"
    add("--chat", action=argparse.BooleanOptionalAction, help=help_text)


def _add_verifiers(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    processes = max(1, min(8, os.cpu_count() or 1))
    add("--verifier-processes", type=_whole(1, 1024), default=processes, help="%(default)s")
    help_text = "seconds for one completion; %(default)g"
    add("--verifier-timeout", type=_positive, default=10.0, help=help_text)
    help_text = "MiB of address space per process; %(default)s"
    add("--verifier-memory", type=_whole(64), default=4096, metavar="MIB", help=help_text)
    help_text = "what payloads say that have no such entry, such as verifier=math; repeatable"
    name = "--verifier-default"
    add(name, type=option, action="append", default=[], help=help_text, metavar="K=V")


def _add_work(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    prompts, attempts = _whole(1, limits.MAX_BATCH_PROMPTS), _whole(1, limits.MAX_GROUP_SIZE)
    help_text = (
        "a lease is for so many groups' attempts, or for more prompts with fewer each, and several "
        "are held; %(default)s"
    )
    add("--prompts", type=prompts, default=32, help=help_text)
    help_text = "at each prompt, whatever they tell; else as many as they are worth"
    add("--attempts", type=attempts, help=help_text)
    help_text = (
        "of the weights that are sampled, which then stay; else those of the newest published "
        "policy are loaded, or believed to be at the endpoint"
    )
    weights = group.add_mutually_exclusive_group()
    step = _whole(0, limits.MAX_POLICY_STEP)
    weights.add_argument("--policy-step", type=step, help=help_text)
    help_text = (
        "the weights are the reference policy's, that training began from: make the attempts that "
        "`curriculum boundary` compares with, and leave when they are made"
    )
    weights.add_argument("--reference", action="store_true", help=help_text)
    help_text = (
        "first embed the prompts that have no embedding yet, with the weights of --model, and tell "
        "the server, which guesses the pass rates of unknown prompts from them; several workers "
        f"share the work; with the engine {' or '.join(EMBEDDERS)}"
    )
    add("--embed", action="store_true", help=help_text)
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


def option(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text}: must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
