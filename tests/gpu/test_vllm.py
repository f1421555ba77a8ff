"""The engine `vllm` on the device, where vLLM is installed."""

from __future__ import annotations

import asyncio
import importlib.util
from collections import Counter

import pytest

from tests.probe.bounds import most_off

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed"),
]


@pytest.fixture
def options(device):
    """So that vLLM takes a small part of the device, and starts soon."""
    bounds = {"enforce_eager": True, "max_model_len": 512}
    if device.startswith("cuda"):
        return {**bounds, "dtype": "bfloat16", "gpu_memory_utilization": 0.2}
    return {**bounds, "dtype": "float32"}


def test_attempts_are_drawn_from_the_models_distribution(
    with_engine, options, timed, folders, figures
) -> None:
    """And from new weights, once they are loaded, in place."""
    n, p, tokens = 2048, 0.75, 8

    async def work(engine):
        asked = asyncio.gather(*[engine.sample(f"q{number}", 8) for number in range(n // 8)])
        answers, elapsed_s = await timed(asked)
        _, load_s = await timed(engine.load(f"file://{folders['b']}"))
        return answers, elapsed_s, load_s, (await engine.sample("q0", 1))[0].text

    answers, elapsed_s, load_s, text = with_engine(
        work, engine="vllm", options=options, max_tokens=tokens
    )
    counts = Counter("".join(each.text for completions in answers for each in completions))
    assert set(counts) == {"a", "b"}
    n *= tokens
    assert abs(counts["a"] - n * p) <= 0.001 * n + most_off(n, p)
    assert text == "b" * tokens
    figures["vllm_tiny_tokens_per_s"] = round(n / elapsed_s)
    figures["vllm_tiny_load_s"] = round(load_s, 3)
