"""The engine `transformers` on the device."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.probe.bounds import most_off

pytestmark = pytest.mark.gpu


def test_attempts_are_drawn_from_the_models_distribution(with_engine, timed, figures) -> None:
    n, p, tokens = 2048, 0.75, 8

    async def work(engine):
        asked = asyncio.gather(*[engine.sample(f"q{number}", 8) for number in range(n // 8)])
        return await timed(asked)

    answers, elapsed_s = with_engine(work, max_tokens=tokens)
    texts = [completion.text for completions in answers for completion in completions]
    assert {completion.token_count for each in answers for completion in each} == {tokens}
    counts = Counter("".join(texts))
    assert set(counts) == {"a", "b"}
    # bfloat16 moves a logit of log 3 by 2⁻⁸ of it at most, so p by less than .001.
    n *= tokens
    assert abs(counts["a"] - n * p) <= 0.001 * n + most_off(n, p)
    figures["tiny_tokens_per_s"] = round(n / elapsed_s)


def test_loaded_weights_change_what_is_generated(with_engine, timed, folders, figures) -> None:
    async def work(engine):
        texts, load_s = [], 0.0
        for name in ("b", "a"):
            texts.append((await engine.sample("q", 1))[0].text)
            _, load_s = await timed(engine.load(f"file://{folders[name]}"))
        return [*texts, (await engine.sample("q", 1))[0].text], load_s

    texts, load_s = with_engine(work, "a", max_tokens=2, temperature=0.0)
    assert texts == ["aa", "bb", "aa"]
    figures["tiny_load_s"] = round(load_s, 3)


def test_prompts_of_many_lengths_are_continued_as_alone(with_engine) -> None:
    """Padding and what prompts share change nothing, but for rounding: the model is random, and of
    two tokens that are nearly as likely either may come."""
    prompts = ["x" * length for length in (1, 3, 17, 60, 200, 400)]

    async def work(engine):
        together = await asyncio.gather(*[engine.sample(prompt, 4) for prompt in prompts])
        alone = [await engine.sample(prompt, 1) for prompt in prompts]
        return [[c.text for c in each] for each in together], [each[0].text for each in alone]

    options = {"temperature": 0.0, "max_tokens": 4}
    together, alone = with_engine(work, "random", **options)
    same = [text == one for texts, one in zip(together, alone, strict=True) for text in texts]
    assert sum(same) >= 0.75 * len(same)


def test_a_batch_too_large_for_the_memory_is_halved(
    with_engine, timed, device, caplog, figures
) -> None:
    """For real: the process may take little more of the device than it has."""
    if not device.startswith("cuda"):
        pytest.skip("only a GPU's memory can be bounded")
    import torch

    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.memory_reserved() + 2**30

    async def work(engine):
        torch.cuda.set_per_process_memory_fraction(allowed / total)
        # 2 layers x 2 x 256 numbers of 2 bytes a token: 2 KiB, so 4096 rows of 500 take 4 GiB.
        return await timed(asyncio.gather(*[engine.sample("q" * 484, 64) for _ in range(64)]))

    try:
        answers, elapsed_s = with_engine(work, max_tokens=16, concurrency=4096)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert [len(completions) for completions in answers] == [64] * 64
    halved = caplog.text.count("batch halved")
    assert halved
    figures["halved_batches"] = halved
    figures["halved_tokens_per_s"] = round(4096 * 16 / elapsed_s)


def test_embeddings_are_those_of_a_cpu(with_engine, timed, device, figures) -> None:
    import torch

    prompts = [f"What is {number} + {number * number}?" for number in range(300)]

    async def embedded(engine):
        return await timed(engine.embed(prompts))

    found, elapsed_s = with_engine(embedded, "random")
    expected, _ = with_engine(embedded, "random", options={"device": "cpu", "dtype": "float32"})
    same = torch.cosine_similarity(torch.tensor(found), torch.tensor(expected))
    assert same.min() > 0.99
    figures["tiny_embeddings_per_s"] = round(len(prompts) / elapsed_s)
