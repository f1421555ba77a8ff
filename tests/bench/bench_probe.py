"""What a worker's throughput is next to its engine's own, measured in one run.

The worker leases from a server in a process of its own, has every attempt verified in another one
and reports it. The reference is the same engine object, given the same prompts and attempts at
once, with nobody to lease from and nothing to verify. `generate_ratio` is the worker's throughput
next to that of bare batches of the model's `generate`, which reads each prompt once per attempt.
`cpu_ratio` is that of tokens per second of this process' processors, worker to engine, which on a
CPU holds on a busy machine too. The sides alternate. The last line is one JSON object, in it
`throughput_ratio`: the median over the repetitions, for that number of rows for which it is lowest.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from curriculum_probe.arguments import option
from curriculum_probe.engines import Engine, EngineConfig, create_engine
from curriculum_probe.patience import Patience
from curriculum_probe.verifiers.pool import VerifierPool
from tests.bench import probe_sides
from tests.bench.probe_sides import Pace, Work


@dataclass
class Sides:
    """The paces of all repetitions with one number of rows."""

    row_count: int
    prompt_count: int
    on_cpu: bool
    """Whether all of the engine's work is done by this process' processors."""
    paces: dict[str, list[Pace]] = field(default_factory=dict)

    def add(self, side: str, pace: Pace) -> None:
        self.paces.setdefault(side, []).append(pace)

    def ratios(self, reference: str, speed: str = "tokens_per_s") -> list[float]:
        pairs = zip(self.paces["worker"], self.paces[reference], strict=True)
        return [getattr(worker, speed) / getattr(other, speed) for worker, other in pairs]

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": self.row_count, "prompts": self.prompt_count}
        for side, paces in self.paces.items():
            speed = statistics.median(pace.tokens_per_s for pace in paces)
            found[f"{side}_tokens_per_s"] = round(speed, 1)
        named = {"throughput_ratio": self.ratios("engine")}
        if self.on_cpu:
            named["cpu_ratio"] = self.ratios("engine", "tokens_per_cpu_s")
        if "generate" in self.paces:
            named["generate_ratio"] = self.ratios("generate")
        for name, ratios in named.items():
            found[name] = round(statistics.median(ratios), 3)
            found[f"{name}_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
        return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def engine_of(options: argparse.Namespace, model: Path, row_count: int) -> Engine:
    given: dict[str, object] = dict(options.engine_option)
    if options.engine == "transformers":
        given.setdefault("device", options.device)
    config = EngineConfig(
        model=str(model),
        max_tokens=options.tokens,
        temperature=1.0,
        concurrency=row_count,
        options=given,
    )
    return create_engine(options.engine, config, Patience(60, threading.Event()))


def work_of(options: argparse.Namespace, row_count: int) -> Work:
    """Whole leases, and at least so many batches."""
    wanted = -(-options.batches * row_count // options.attempts)
    prompt_count = -(-wanted // probe_sides.LEASED_PROMPTS) * probe_sides.LEASED_PROMPTS
    prompts = probe_sides.questions(prompt_count, options.verifier)
    return Work(prompts, options.attempts, row_count)


async def compare(options: argparse.Namespace, model: Path, row_count: int, address: str) -> Sides:
    """All sides in turn, each repetition in another order."""
    work = work_of(options, row_count)
    engine = engine_of(options, model, row_count)
    pool = VerifierPool(process_count=options.verifiers, timeout_s=10.0, memory_bytes=2**32)
    on_cpu = options.engine == "transformers" and options.device == "cpu"
    sides = Sides(row_count, len(work.prompts), on_cpu)
    try:
        async with pool as verifiers:
            payload_json = work.prompts[0].payload_json
            prepared = [verifiers.prepare(payload_json) for _ in range(options.verifiers)]
            await asyncio.gather(*prepared)
            runs: dict[str, Callable[[], Any]] = {
                "worker": partial(probe_sides.by_worker, engine, verifiers, work, address),
                "engine": partial(probe_sides.by_engine, engine, work),
            }
            if options.engine == "transformers":
                runs["generate"] = partial(probe_sides.by_generate, engine, work)
            await runs["engine"]()  # the first time is slower
            for number in range(options.repetitions):
                names = list(runs)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    sides.add(name, await runs[name]())
                    pace = sides.paces[name][-1]
                    assert pace.attempt_count == len(work.prompts) * work.attempt_count
                    speeds = f"{pace.tokens_per_s:,.0f} tokens/s, {pace.cpu_s:.1f} s of processor"
                    say(f"  rows={row_count} {name}: {speeds}")
    finally:
        await engine.close()
    return sides


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every number of rows; what `main` prints."""
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch, probe_sides.serving() as (address, server):
        model = Path(options.model) if options.model else Path(scratch)
        if not options.model:
            sizes = probe_sides.SMALL if options.device == "cpu" else probe_sides.LARGE
            say(f"a model of {sizes} for {options.device}; {server} at {address}")
            probe_sides.save_model(model, sizes)
        load = os.getloadavg()[0]
        found = [
            asyncio.run(compare(options, model, row_count, address)).summary()
            for row_count in options.rows
        ]
    return {
        "throughput_ratio": min(each["throughput_ratio"] for each in found),
        "by_rows": found,
        "engine": options.engine,
        "model": options.model or "a Qwen2 from its configuration",
        "attempts": options.attempts,
        "max_tokens": options.tokens,
        "repetitions": options.repetitions,
        "verifier": options.verifier,
        "server": server,
        **surroundings(options),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    """The hardware, and what ran on it."""
    import torch

    on_cuda = options.device.startswith("cuda") and torch.cuda.is_available()
    versions = {}
    for name in ("torch", "transformers", "vllm", "grpcio"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": torch.cuda.get_device_name() if on_cuda else options.device,
        "torch_threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    add = made.add_argument
    add("--engine", choices=("transformers", "vllm"), default="transformers")
    add("--model", default="", help="a folder or name; else one is made from its configuration")
    add("--device", default="", help="for transformers: cuda where there is one")
    add("--engine-option", type=option, action="append", default=[], metavar="K=V")
    add("--rows", type=int, nargs="+", help="sampled at a time; 8 32 128, on a GPU 64 256 1024")
    add("--attempts", type=int, default=8, help="of each prompt")
    add("--tokens", type=int, default=128, help="of each attempt")
    add("--batches", type=int, default=6, help="at least, of each side in each repetition")
    add("--repetitions", type=int, default=5)
    verifier = "math" if importlib.util.find_spec("math_verify") else "numeric"
    add("--verifier", default=verifier, help="a built-in one that takes an answer; %(default)s")
    add("--verifiers", type=int, default=1, help="processes")
    help_text = "PyTorch's, for all sides: the server and the verifiers want a core as well"
    add("--threads", type=int, default=1, help=help_text)
    add("--quick", action="store_true", help="a minute: one number of rows, short completions")
    return made


def options_for(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with what depends on the machine."""
    import torch

    options = parser().parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    options.device = options.device or ("cuda" if has_gpu else "cpu")
    if not options.rows:
        options.rows = [8, 32, 128] if options.device == "cpu" else [64, 256, 1024]
    if options.quick:
        options.rows, options.repetitions = options.rows[1:2], min(options.repetitions, 3)
        options.tokens = min(options.tokens, 32)
    return options


def main() -> None:
    result = measure(options_for())
    for each in result["by_rows"]:
        print("  ".join(f"{name}={value}" for name, value in each.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
