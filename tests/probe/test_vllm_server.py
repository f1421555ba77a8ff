"""The engine `openai` at vLLM's own server, where vLLM is installed: `make test-vllm`."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest

pytest.importorskip(
    "vllm", reason="vLLM is not installed here, see make test-vllm", exc_type=ImportError
)

from curriculum_probe.engines import EngineConfig, EngineError, RefusedError, create_engine
from curriculum_probe.patience import Patience
from tests.probe import tiny
from tests.probe.bounds import most_off

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SIZES = {"hidden_size": 64, "intermediate_size": 64}
"""vLLM wants heads of at least 32."""
TEMPLATE = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
START_S = 300.0
"""It compiles nothing, but imports much."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """What `vllm serve` runs, for a model that writes an "a" three times out of four."""
    model = tiny.constant_model({"a": 3, "b": 1}, **SIZES)
    folder = tiny.save(model, tmp_path_factory.mktemp("served"), TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--model", str(folder), "--served-model-name", "tiny", "--max-model-len", "128"]
    flags += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    log_file = folder / "server.log"
    with log_file.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags],
            env=os.environ,
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while not _answers(f"{address}/health"):
            assert server.poll() is None, log_file.read_text()[-2000:]
            assert time.monotonic() < deadline, log_file.read_text()[-2000:]
            time.sleep(0.5)
        yield f"{address}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture
def engine_of(url):
    def build(**changes):
        settings = {"model": "tiny", "max_tokens": 1, "temperature": 1.0, "concurrency": 64}
        config = EngineConfig(endpoint=url, **{**settings, **changes})
        return create_engine("openai", config, Patience(1, threading.Event()))

    return build


async def test_attempts_are_drawn_from_the_models_distribution(engine_of) -> None:
    engine = engine_of()
    n, p = 800, 0.75
    answers = await asyncio.gather(*[engine.sample(f"q{number}", 8) for number in range(n // 8)])
    counts = Counter(completion.text for completions in answers for completion in completions)
    assert counts.total() == n
    assert set(counts) == {"a", "b"}
    assert abs(counts["a"] - n * p) <= most_off(n, p)


async def test_tokens_are_counted_and_a_completion_ends_before_a_stop(engine_of) -> None:
    completions = await engine_of(max_tokens=8).sample("q", 4)
    assert [completion.token_count for completion in completions] == [8] * 4
    stopping = await engine_of(max_tokens=12, stop=("b",)).sample("q", 32)
    assert {completion.text.strip("a") for completion in stopping} == {""}
    assert sum(completion.token_count for completion in stopping) < 32 * 12


async def test_a_chat_is_continued(engine_of) -> None:
    completions = await engine_of(max_tokens=8, chat=True).sample("hi", 4)
    assert [len(completion.text) for completion in completions] == [8] * 4


async def test_a_prompt_that_does_not_fit_is_refused_alone(engine_of) -> None:
    engine = engine_of(max_tokens=8)
    refused, fine = await asyncio.gather(
        engine.sample("x" * 128, 2), engine.sample("x", 2), return_exceptions=True
    )
    assert isinstance(refused, RefusedError)
    assert [len(completion.text) for completion in fine] == [8] * 2


async def test_a_model_that_it_does_not_serve_is_an_error(engine_of) -> None:
    with pytest.raises(EngineError, match="404"):
        await engine_of(model="other").sample("q", 1)


def test_a_run_is_probed(probe, pool, url) -> None:
    for number in range(6):
        pool.add(f"prompt {number}", {"answer": "a"})
    assert probe(endpoint=url, model="tiny", max_tokens=1, attempts=64, verifier_processes=1) == 0
    assert set(pool.attempts().values()) == {64}
    n, p = 6 * 64, 0.75
    passes = sum(pool.passes().values())
    assert abs(passes - n * p) <= most_off(n, p)
