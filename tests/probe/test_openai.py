"""The engine `openai` against a server process that really generates, and its smaller points."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from curriculum_probe.engines import EngineConfig, EngineError, RefusedError, create_engine
from curriculum_probe.patience import Patience
from tests.probe import tiny
from tests.probe.bounds import most_off

SERVER = Path(__file__).with_name("completions_server.py")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tiny.save(tiny.constant_model({"a": 3, "b": 1}), tmp_path_factory.mktemp("model"))
    command = [sys.executable, SERVER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    process.kill()
    process.communicate()


def make(endpoint, **changes):
    settings = {"model": "stub", "max_tokens": 4, "temperature": 1.0, "concurrency": 64}
    config = EngineConfig(endpoint=endpoint, **{**settings, **changes})
    return create_engine("openai", config, Patience(5, threading.Event()))


@pytest.mark.parametrize("chat", [False, True])
async def test_attempts_are_drawn_by_a_real_server(url, chat) -> None:
    engine = make(url, max_tokens=1, chat=chat)
    n, p = 500, 0.75
    answers = await asyncio.gather(*[engine.sample(f"q{number}", n // 10) for number in range(10)])
    counts = Counter(completion.text for completions in answers for completion in completions)
    assert counts.total() == n
    assert set(counts) == {"a", "b"}
    assert abs(counts["a"] - n * p) <= most_off(n, p)
    assert {completion.token_count for completion in answers[0]} == {1}


async def test_sampling_parameters_reach_the_server(url) -> None:
    engine = make(url, max_tokens=9, top_p=0.5, stop=("aaaaa", "b"))
    completions = await engine.sample("q", 8)
    assert [completion.text for completion in completions] == [""] * 8  # a alone, up to the stop
    assert sum(completion.token_count for completion in completions) == 9 * 8


def test_a_run_is_probed_at_a_real_server(probe, pool, url) -> None:
    for number in range(6):
        pool.add(f"prompt {number}", {"answer": "a"})
    assert probe(endpoint=url, max_tokens=1, attempts=100) == 0
    assert set(pool.attempts().values()) == {100}
    n, p = 600, 0.75
    assert abs(sum(pool.passes().values()) - n * p) <= most_off(n, p)


async def test_requests_run_side_by_side(endpoint) -> None:
    together = threading.Barrier(12)
    endpoint.on_request = lambda _number: together.wait(10)
    engine = make(endpoint.url)
    answers = await asyncio.gather(*[engine.sample(f"0.5 {n}", 2) for n in range(12)])
    assert [len(completions) for completions in answers] == [2] * 12


async def test_a_refused_prompt_is_told_from_a_broken_endpoint(endpoint) -> None:
    engine = make(endpoint.url)
    endpoint.refused = {"0.5 long"}
    with pytest.raises(RefusedError, match="400: the prompt is too long"):
        await engine.sample("0.5 long", 1)
    endpoint.failures = [(200, "<html>"), (200, '{"choices": []}'), (401, "who are you?")]
    for message in ("something else than JSON", "without completions", "401: who are you?"):
        with pytest.raises(EngineError, match=message):
            await engine.sample("0.5", 1)


async def test_its_weights_are_the_endpoints_own(endpoint) -> None:
    engine = make(endpoint.url)
    assert not engine.loads_weights
    with pytest.raises(EngineError, match="cannot be changed from here"):
        await engine.load("/somewhere")
