"""Many more callers than the service can serve: what they get, what it costs, who suffers.

One server with its embedded store, in processes of their own. Beside trainers that loop without a
pause there are greedy callers, who keep many calls in flight on one connection, slow ones, who
leave requests unfinished and answers unread, and one polite trainer that pauses between its steps:
its times tell how much of the storm others feel. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc

from curriculum_api.errors import CurriculumError
from curriculum_api.limits import MAX_ADD_PROMPTS
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2
from curriculum_api.v1 import trainer_service_pb2 as tr
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.trainer_service_pb2_grpc import TrainerServiceStub
from curriculum_client import AsyncTrainerClient, TrainerClient

sys.path.insert(0, str(Path(__file__).parents[2]))  # also as a script, it uses the tests' callers
from tests.server.raw_http2 import RawCaller

RUN = "storm"
NEXT_BATCH = "/curriculum_api.v1.TrainerService/NextBatch"
SAMPLES_PER_S = 2
PROMISED = {"OK", "RESOURCE_EXHAUSTED"}


async def train(address: str, name: str, options: argparse.Namespace) -> Counter[str]:
    """Steps without a pause; how many calls ended how, as the client's user sees it."""
    ended: Counter[str] = Counter()
    deadline = time.monotonic() + options.seconds
    async with AsyncTrainerClient(address, run_id=RUN, consumer=name) as client:
        while time.monotonic() < deadline:
            try:
                batch = await client.next_batch(options.batch, policy_step=0)
                rewards = [[float(a % 2) for a in range(p.attempt_count)] for p in batch]
                if len(batch):
                    await client.report(batch, rewards, policy_step=0)
                ended["OK"] += 1
            except CurriculumError as error:
                ended[type(error).__name__] += 1
    return ended


async def hoard(address: str, name: str, options: argparse.Namespace) -> Counter[str]:
    """Dozens of calls at once on one connection, never a report, no patience."""
    ended: Counter[str] = Counter()
    deadline = time.monotonic() + options.seconds
    async with grpc.aio.insecure_channel(address) as channel:
        stub = TrainerServiceStub(channel)

        async def ask(lane: int) -> None:
            number = 0
            while time.monotonic() < deadline:
                number += 1
                request = tr.NextBatchRequest(
                    run_id=RUN, request_id=f"{name}-{lane}-{number}", prompt_count=1
                )
                try:
                    await stub.NextBatch(request, timeout=10)
                    ended["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    ended[error.code().name] += 1
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(ask(lane) for lane in range(32)))
    return ended


async def gather(address: str, first: int, options: argparse.Namespace) -> Counter[str]:
    """A process's share of the trainers or of the greedy."""
    caller = hoard if options.role == "hoard" else train
    names = (f"{options.role}-{first + number}" for number in range(options.count))
    ended = await asyncio.gather(*(caller(address, name, options) for name in names))
    return sum(ended, start=Counter())


@contextmanager
def slow_callers(address: str, count: int) -> Iterator[None]:
    """Connections that say nothing, that leave requests unfinished, and that read no answer."""
    with ExitStack() as connections:
        for number in range(count):
            caller = connections.enter_context(closing(RawCaller(address, window=0)))
            for call in range(20 * (number % 3)):
                if number % 3 == 1:
                    caller.send(caller.begin(NEXT_BATCH), b"\0\0\0\1\0half of it")
                else:
                    asked = tr.NextBatchRequest(
                        run_id=RUN, request_id=f"unread-{number}-{call}", prompt_count=4
                    )
                    caller.call(NEXT_BATCH, asked.SerializeToString())
        yield


class Polite:
    """Trainers that train for a while between their calls; how long those took, in ms."""

    def __init__(self, address: str, name: str, options: Any) -> None:
        self.times_ms: dict[str, list[float]] = {"next_batch": [], "report": []}
        self.errors: Counter[str] = Counter()
        self._address, self._pause_s = address, options.pause_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._train, args=[f"{name}-{number}"])
            for number in range(options.polite)
        ]

    def __enter__(self) -> Polite:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def figures(self, when: str) -> dict[str, float]:
        return {
            f"{name}_{when}_{label}_ms": round(quantile(times, share), 1)
            for name, times in self.times_ms.items()
            for label, share in (("p50", 0.5), ("p99", 0.99))
        }

    def _train(self, name: str) -> None:
        rng = random.Random(name)
        with TrainerClient(self._address, run_id=RUN, consumer=name) as client:
            while not self._stop.wait(self._pause_s * rng.uniform(0.5, 1.5)):
                try:
                    started = time.perf_counter()
                    batch = client.next_batch(16, policy_step=0)
                    leased = time.perf_counter()
                    self.times_ms["next_batch"].append((leased - started) * 1e3)
                    rewards = [[1.0] * p.attempt_count for p in batch]
                    if len(batch) and not self._stop.wait(self._pause_s * rng.uniform(0.5, 1.5)):
                        started = time.perf_counter()
                        client.report(batch, rewards, policy_step=0)
                        self.times_ms["report"].append((time.perf_counter() - started) * 1e3)
                except CurriculumError as error:
                    self.errors[type(error).__name__] += 1


class Memory:
    """Resident memory of processes over time, in MB."""

    def __init__(self, **pids: int) -> None:
        self.samples: dict[str, list[float]] = {name: [] for name in pids}
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def figures(self, name: str) -> dict[str, float]:
        """From a third of the time on: what there is, how it grows, and its highest."""
        rest = self.samples[name][len(self.samples[name]) // 3 :]
        minutes = [number / SAMPLES_PER_S / 60 for number in range(len(rest))]
        slope = statistics.linear_regression(minutes, rest).slope
        return {
            f"{name}_rss_mb": round(rest[0], 1),
            f"{name}_rss_slope_mb_per_min": round(slope, 2),
            f"{name}_rss_max_ratio": round(max(rest) / rest[0], 3),
        }

    def _watch(self) -> None:
        while not self._stop.wait(1 / SAMPLES_PER_S):
            for name, pid in self._pids.items():
                self.samples[name].append(resident_mb(pid))


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Server:
    """A server with metrics, in a process of its own."""

    def __init__(self, data_dir: str) -> None:
        flags = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--data-dir", data_dir)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "curriculum_server.app", *flags, "--log-level", "warning"],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        printed = {}
        for line in self.process.stdout:
            if found := re.match(r"(metrics|listening on) +(\S+)", line):
                printed[found[1]] = found[2]
            if "listening on" in printed:
                break
        self.address, self.metrics = printed["listening on"], printed["metrics"]
        self.pid = self.process.pid
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        self.store_pid = int(children[0])

    def answers(self) -> Counter[str]:
        """Calls answered so far, by code."""
        with urllib.request.urlopen(self.metrics) as page:
            text = page.read().decode()
        answers: Counter[str] = Counter()
        for code, count in re.findall(
            r'^curriculum_rpcs_total\{code="(\w+)".*\} (\S+)', text, re.M
        ):
            answers[code] += int(float(count))
        return answers

    @property
    def warnings(self) -> str:
        """What it wrote to standard error so far."""
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        assert self.process.stdout is not None
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._log.close()


def fill(address: str, prompt_count: int) -> None:
    with grpc.insecure_channel(address) as channel:
        operator = OperatorServiceStub(channel)
        operator.CreateRun(op.CreateRunRequest(run_id=RUN))
        for start in range(0, prompt_count, MAX_ADD_PROMPTS):
            prompts = [
                prompt_pb2.Prompt(prompt_id=f"p{i}", domain=f"d{i % 4}", text=f"What is {i}? " * 8)
                for i in range(start, min(prompt_count, start + MAX_ADD_PROMPTS))
            ]
            operator.AddPrompts(op.AddPromptsRequest(run_id=RUN, prompts=prompts))


def spawn(address: str, role: str, first: int, count: int, options: Any) -> subprocess.Popen[str]:
    flags = [f"--{name}={getattr(options, name)}" for name in ("seconds", "batch")]
    flags += [f"--role={role}", f"--address={address}", f"--first={first}", f"--count={count}"]
    return subprocess.Popen([sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True)


def storm(server: Server, options: Any) -> dict[str, Counter[str]]:
    """Everybody at once, for `options.seconds`; by role, how calls ended for their callers."""
    shares = [
        (number * options.trainers) // options.processes for number in range(options.processes + 1)
    ]
    started = [
        ("train", spawn(server.address, "train", low, high - low, options))
        for low, high in itertools.pairwise(shares)
    ]
    if options.greedy:
        started.append(("hoard", spawn(server.address, "hoard", 0, options.greedy, options)))
    with slow_callers(server.address, options.slow):
        ended: dict[str, Counter[str]] = {"train": Counter(), "hoard": Counter()}
        for role, process in started:
            output, _ = process.communicate(timeout=options.seconds + 120)
            ended[role] += Counter(json.loads(output.splitlines()[-1]))
    return ended


def measure(options: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as data_dir, closing(Server(data_dir)) as server:
        fill(server.address, options.prompts)
        with Polite(server.address, "alone", options) as alone:
            time.sleep(options.alone_seconds)
        before, started = server.answers(), time.monotonic()
        with (
            Memory(server=server.pid, store=server.store_pid) as memory,
            Polite(server.address, "beside", options) as beside,
        ):
            ended = storm(server, options)
        elapsed_s = time.monotonic() - started
        answers = server.answers() - before
    return {
        "answers": dict(answers),
        "calls_per_s": round(answers["OK"] / elapsed_s),
        "trainers_saw": dict(ended["train"]),
        "greedy_saw": dict(ended["hoard"]),
        "polite_errors": dict(alone.errors + beside.errors),
        **alone.figures("alone"),
        **beside.figures("beside"),
        **memory.figures("server"),
        **memory.figures("store"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainers", type=int, default=200)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--greedy", type=int, default=20)
    parser.add_argument("--slow", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--alone-seconds", type=float, default=10)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--polite", type=int, default=8)
    parser.add_argument("--pause-s", type=float, default=1.0, help="of the polite, on average")
    for flag in ("--role", "--address"):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    for flag in ("--first", "--count"):
        parser.add_argument(flag, type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        print(json.dumps(asyncio.run(gather(options.address, options.first, options))))
    else:
        print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
