"""How much the service costs over a bare gRPC echo of the same bytes, measured in one run.

The server is a process of its own with its embedded store; so is the echo. Calls alternate, so
that both meet the same noise. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import numpy as np

from curriculum_api.limits import MAX_ADD_PROMPTS, MAX_MESSAGE_BYTES
from curriculum_api.v1 import batch_pb2, prompt_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import trainer_service_pb2 as tr
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.trainer_service_pb2_grpc import TrainerServiceStub

T = TypeVar("T")
TEXT = "A train leaves at {0} and travels {0} km at {1} km/h. When does it arrive? " * 2
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
ECHO = "/bench.Echo/Echo"


async def serve_echo() -> None:
    """A bare grpc.aio server, without protobuf, that answers with the bytes it was told to keep,
    or with those it gets."""
    kept = {}

    async def echo(request: bytes, _context: object) -> bytes:
        if request.startswith(b"keep "):
            kept["bytes"] = request[5:]
        return kept["bytes"] if request == b"get" else request

    server = grpc.aio.server(options=OPTIONS)
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """Run a Python process until the end of the block; gives the address it prints."""
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as started:
        assert started.stdout is not None
        try:
            for line in started.stdout:
                if found := re.match(r"listening on (\S+)", line):
                    yield found[1]
                    break
            else:
                raise RuntimeError(f"{arguments} did not start")
        finally:
            started.terminate()


class Timer:
    """Times calls by name, in milliseconds, each after a pause: a trainer trains between them."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._times: dict[str, list[float]] = defaultdict(list)

    def call(self, name: str, function: Callable[..., T], *arguments: Any) -> T:
        time.sleep(self._pause_s)
        start = time.perf_counter()
        result = function(*arguments)
        self._times[name].append((time.perf_counter() - start) * 1e3)
        return result

    def medians(self) -> dict[str, float]:
        """By name, without the first tenth."""
        return {
            f"{name}_ms": statistics.median(times[len(times) // 10 :])
            for name, times in self._times.items()
        }


def fill(operator: OperatorServiceStub, prompt_count: int) -> None:
    operator.CreateRun(op.CreateRunRequest(run_id="bench"))
    for start in range(0, prompt_count, MAX_ADD_PROMPTS):
        prompts = [
            prompt_pb2.Prompt(
                prompt_id=f"p{i}",
                domain=f"d{i % 4}",
                text=TEXT.format(i, i % 97),
                payload_json=f'{{"answer": {i}}}',
            )
            for i in range(start, min(prompt_count, start + MAX_ADD_PROMPTS))
        ]
        operator.AddPrompts(op.AddPromptsRequest(run_id="bench", prompts=prompts))


def report_for(
    batch: batch_pb2.Batch, rng: np.random.Generator, step: int, *, with_tokens: bool
) -> tr.ReportOutcomesRequest:
    """Binary rewards for every attempt of the batch, half of them passes."""
    slots = [p.slot for p in batch.prompts for _ in range(p.attempt_count)]
    rewards = (rng.random(len(slots)) < 0.5).astype(float)
    return tr.ReportOutcomesRequest(
        run_id="bench",
        request_id=f"report-{step}",
        batch_id=batch.batch_id,
        timeline=batch.timeline,
        policy_step=step,
        outcomes=batch_pb2.Outcomes(
            slots=slots,
            rewards=rewards.tolist(),
            token_counts=[200] * len(slots) if with_tokens else [],
        ),
    )


def measure(address: str, echo_address: str, options: argparse.Namespace) -> dict[str, float]:
    """Medians, in milliseconds, and their ratios to the echo."""
    rng, timer = np.random.default_rng(0), Timer(options.pause_ms / 1e3)
    with (
        grpc.insecure_channel(address, OPTIONS) as channel,
        grpc.insecure_channel(echo_address, OPTIONS) as echo_channel,
    ):
        trainer = TrainerServiceStub(channel)
        echo = echo_channel.unary_unary(ECHO)
        fetch = echo_channel.unary_unary(
            ECHO, response_deserializer=tr.NextBatchResponse.FromString
        )
        send = echo_channel.unary_unary(
            ECHO, request_serializer=tr.ReportOutcomesRequest.SerializeToString
        )
        fill(OperatorServiceStub(channel), options.prompts)
        for step in range(options.steps):
            ask = tr.NextBatchRequest(
                run_id="bench",
                request_id=f"batch-{step}",
                prompt_count=options.batch,
                policy_step=step,
            )
            answer = timer.call("next", trainer.NextBatch, ask)
            content = answer.SerializeToString()
            echo(b"keep " + content)
            timer.call("next_echo", fetch, b"get")
            report = report_for(answer.batch, rng, step, with_tokens=options.tokens)
            timer.call("report", trainer.ReportOutcomes, report)
            timer.call("report_echo", send, report)
    medians = timer.medians()
    return medians | {
        "next_batch_ratio": medians["next_ms"] / medians["next_echo_ms"],
        "report_ratio": medians["report_ms"] / medians["report_echo_ms"],
        "batch_bytes": float(len(content)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", action="store_true", help="report token counts as well")
    parser.add_argument("--pause-ms", type=float, default=20, help="before each timed call")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if options.echo:
        asyncio.run(serve_echo())
        return
    results = []
    for _ in range(options.runs):
        result = run_once(options)
        unpaused = run_once(argparse.Namespace(**vars(options) | {"pause_ms": 0}))
        result |= {
            f"{name}_unpaused": unpaused[name] for name in ("next_batch_ratio", "report_ratio")
        }
        print("  ".join(f"{name}={value:.2f}" for name, value in result.items()), flush=True)
        results.append(result)
    middle = {name: statistics.median(r[name] for r in results) for name in results[0]}
    print(json.dumps({name: round(value, 3) for name, value in middle.items()}))


def run_once(options: argparse.Namespace) -> dict[str, float]:
    """Measure on a new server with a new store."""
    with (
        tempfile.TemporaryDirectory() as data_dir,
        process(
            *("-m", "curriculum_server.app", "--listen", "127.0.0.1:0"),
            *("--metrics", "off", "--data-dir", data_dir),
        ) as address,
        process(__file__, "--echo") as echo_address,
    ):
        return measure(address, echo_address, options)


if __name__ == "__main__":
    main()
