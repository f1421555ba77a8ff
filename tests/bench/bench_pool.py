"""How large a pool one run holds: one server with its embedded store, filled step by step.

At each size: how long filling took, what the store and the server hold in memory, how long a
restart takes until the first batch, and how long a trainer then waits. Stops before a process
outgrows its limit. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from bench_service import OPTIONS, report_for

from curriculum_api.limits import MAX_ADD_PROMPTS
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_api.v1 import trainer_service_pb2 as tr
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.trainer_service_pb2_grpc import TrainerServiceStub

RUN_ID = "bench"
PROGRESS_PROMPTS = 250_000


@dataclass(frozen=True)
class Server:
    """A running server and its store."""

    pid: int
    address: str

    def memory_mb(self) -> dict[str, float]:
        (store,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return {
            "server_mb": _memory_mb(self.pid, "VmRSS"),
            "server_peak_mb": _memory_mb(self.pid, "VmHWM"),
            "store_mb": _memory_mb(int(store), "VmRSS"),
            "store_peak_mb": _memory_mb(int(store), "VmHWM"),
        }


def _memory_mb(pid: int, name: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@contextmanager
def serving(data_dir: str) -> Iterator[Server]:
    """A server until the end of the block."""
    flags = ["--listen", "127.0.0.1:0", "--metrics", "off", "--data-dir", data_dir]
    with subprocess.Popen(
        [sys.executable, "-m", "curriculum_server.app", *flags, "--log-level", "error"],
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout is not None
        try:
            found = None
            while found is None:
                line = started.stdout.readline()
                assert line, "the server did not start"
                found = re.match(r"listening on (\S+)", line)
            yield Server(started.pid, found[1])
        finally:
            started.terminate()


def text_of(number: int, size: int) -> str:
    """A prompt's text, of which no compression makes little."""
    digest = hashlib.blake2b(str(number).encode()).hexdigest()
    return f"What is {number} + {number}? {digest * (size // len(digest) + 1)}"[:size]


def fill(operator: OperatorServiceStub, start: int, stop: int, text_bytes: int) -> float:
    """Add prompts [start, stop) of the pool; gives the seconds it took."""
    began = time.perf_counter()
    for first in range(start, stop, MAX_ADD_PROMPTS):
        prompts = [
            prompt_pb2.Prompt(prompt_id=f"p{i}", domain=f"d{i % 8}", text=text_of(i, text_bytes))
            for i in range(first, min(stop, first + MAX_ADD_PROMPTS))
        ]
        operator.AddPrompts(op.AddPromptsRequest(run_id=RUN_ID, prompts=prompts))
        if first // PROGRESS_PROMPTS != (first + MAX_ADD_PROMPTS) // PROGRESS_PROMPTS:
            took = time.perf_counter() - began
            print(f"  {first + len(prompts):,} prompts, {took:.0f} s", file=sys.stderr, flush=True)
    return time.perf_counter() - began


def train(address: str, first_step: int, options: argparse.Namespace) -> dict[str, float]:
    """Steps of a trainer: milliseconds of its first batch, and of both calls from then on."""
    rng, nexts, reports = np.random.default_rng(first_step), [], []
    with grpc.insecure_channel(address, OPTIONS) as channel:
        trainer = TrainerServiceStub(channel)
        for step in range(first_step, first_step + options.steps):
            time.sleep(options.pause_ms / 1e3)
            ask = tr.NextBatchRequest(
                run_id=RUN_ID,
                request_id=f"batch-{step}",
                prompt_count=options.batch,
                policy_step=step,
            )
            began = time.perf_counter()
            batch = trainer.NextBatch(ask, timeout=60).batch
            nexts.append((time.perf_counter() - began) * 1e3)
            time.sleep(options.pause_ms / 1e3)
            report = report_for(batch, rng, step, with_tokens=False)
            began = time.perf_counter()
            trainer.ReportOutcomes(report, timeout=60)
            reports.append((time.perf_counter() - began) * 1e3)
    return {
        "first_batch_ms": nexts[0],
        "next_ms": statistics.median(nexts[1:]),
        "next_p95_ms": float(np.quantile(nexts[1:], 0.95)),
        "report_ms": statistics.median(reports[1:]),
        "report_p95_ms": float(np.quantile(reports[1:], 0.95)),
    }


def measure(data_dir: str, known: int, size: int, options: argparse.Namespace) -> dict[str, float]:
    """Grow the pool to `size`, look, restart, look again."""
    with serving(data_dir) as server, grpc.insecure_channel(server.address, OPTIONS) as channel:
        operator = OperatorServiceStub(channel)
        config = run_pb2.RunConfig(window_steps=1000)
        operator.CreateRun(op.CreateRunRequest(run_id=RUN_ID, config=config))
        result = {"prompts": float(size), "add_s": fill(operator, known, size, options.text_bytes)}
        result |= {f"filling_{name}": value for name, value in server.memory_mb().items()}
    began = time.perf_counter()
    with serving(data_dir) as server:
        result["listening_s"] = time.perf_counter() - began
        result |= train(server.address, known // 1000, options)
        result |= server.memory_mb()
        with grpc.insecure_channel(server.address, OPTIONS) as channel:
            began = time.perf_counter()
            OperatorServiceStub(channel).GetStats(op.GetStatsRequest(run_id=RUN_ID), timeout=60)
            result["stats_ms"] = (time.perf_counter() - began) * 1e3
    files = [path for path in Path(data_dir).rglob("*") if path.is_file()]
    return result | {"disk_mb": sum(path.stat().st_size for path in files) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000_000, 2_000_000, 5_000_000], metavar="N"
    )
    parser.add_argument("--text-bytes", type=int, default=80, help="of each prompt")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pause-ms", type=float, default=20, help="before each timed call")
    parser.add_argument("--limit-mb", type=float, default=8_000, help="of memory, to go on at all")
    options = parser.parse_args()
    results, known = [], 0
    with tempfile.TemporaryDirectory() as data_dir:
        for size in sorted(options.sizes):
            if results:
                used = max(v for k, v in results[-1].items() if k.endswith("peak_mb"))
                if used * size / known > options.limit_mb:
                    print(f"  stopped before {size:,} prompts: {used:.0f} MB at {known:,}")
                    break
            result = measure(data_dir, known, size, options)
            print("  ".join(f"{name}={value:,.1f}" for name, value in result.items()), flush=True)
            results.append(result)
            known = size
    print(json.dumps([{name: round(value, 1) for name, value in r.items()} for r in results]))


if __name__ == "__main__":
    main()
