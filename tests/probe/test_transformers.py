"""The engine `transformers`, on a CPU, with tiny models that really generate."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from curriculum_api.errors import CurriculumError
from curriculum_probe.engines import (
    CheckpointError,
    EngineConfig,
    EngineError,
    RefusedError,
    create_engine,
)
from curriculum_probe.patience import Patience
from tests.probe import tiny
from tests.probe.bounds import most_off

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TEMPLATE = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {
        "random": tiny.random_model(1),
        "other": tiny.random_model(2),
        "wide": tiny.random_model(1, intermediate_size=32),
        "mixed": tiny.constant_model({"a": 3, "b": 1}),
        "ending": tiny.constant_model({"a": 1, tiny.END: 1}),
    }
    root = tmp_path_factory.mktemp("models")
    return {name: tiny.save(model, root / name, TEMPLATE) for name, model in made.items()}


def make(folder, **changes):
    settings = {"model": str(folder), "max_tokens": 8, "temperature": 1.0, "concurrency": 64}
    config = EngineConfig(**{**settings, **changes})
    return create_engine("transformers", config, Patience(1, threading.Event()))


@pytest.fixture
async def engine_of(folders):
    engines = []

    def build(name="random", **changes):
        engines.append(make(folders[name], **changes))
        return engines[-1]

    yield build
    for engine in engines:
        await engine.close()


def greedy(folder, prompt, max_tokens=8):
    """What transformers itself writes, without batch or padding."""
    model = tiny.Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tiny.tokenizer()(prompt)["input_ids"]])
    written = model.generate(ids, max_new_tokens=max_tokens, do_sample=False)[0, ids.shape[1] :]
    return tiny.tokenizer().decode(written, skip_special_tokens=True)


async def test_greedy_completions_are_the_models_whatever_shares_their_batch(
    engine_of, folders
) -> None:
    engine = engine_of(temperature=0.0)
    prompts = ["x", "What is 2 + 2?", "abc" * 9, "z" * 60]
    answers = await asyncio.gather(*[engine.sample(prompt, 3) for prompt in prompts])
    for prompt, completions in zip(prompts, answers, strict=True):
        assert {c.text for c in completions} == {greedy(folders["random"], prompt)}
        assert len(completions) == 3


async def test_attempts_of_a_prompt_share_what_was_computed_of_it(engine_of, monkeypatch) -> None:
    engine = engine_of("random", temperature=0.0)
    read, forward = [], engine._model.model.forward

    def note(**inputs):
        read.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(engine._model.model, "forward", note)
    shared = await engine.sample("abcdefghijklmn", 8)
    assert read[:2] == [(1, 13), (8, 1)]
    engine._shares_prompts = False
    assert await engine.sample("abcdefghijklmn", 8) == shared
    assert read[-8] == (8, 14)


async def test_a_model_whose_prompts_cannot_be_shared_reads_them_for_each_attempt(
    engine_of, folders, monkeypatch, caplog
) -> None:
    engine = engine_of("random", temperature=0.0)
    forward = engine._model.model.forward

    def strict(**inputs):
        if inputs["input_ids"].shape == (1, 1):
            raise TypeError("no such argument: past_key_values")
        return forward(**inputs)

    monkeypatch.setattr(engine._model.model, "forward", strict)
    for _ in range(2):
        completions = await engine.sample("hi", 3)
        assert {c.text for c in completions} == {greedy(folders["random"], "hi")}
    assert caplog.text.count("because=no such argument") == 1


async def test_attempts_are_drawn_from_the_models_distribution(engine_of) -> None:
    engine = engine_of("mixed", max_tokens=1)
    n, p = 2000, 0.75
    counts = Counter(c.text for c in await engine.sample("q", n))
    assert set(counts) == {"a", "b"}
    assert abs(counts["a"] - n * p) <= most_off(n, p)


async def test_tokens_are_counted_up_to_the_end(engine_of) -> None:
    engine = engine_of("ending", max_tokens=6)
    for completion in await engine.sample("q", 200):
        letters = len(completion.text)
        assert completion.text == "a" * letters
        assert completion.token_count == min(letters + 1, 6)


async def test_a_completion_ends_before_a_stop(engine_of) -> None:
    engine = engine_of("mixed", max_tokens=12, stop=("b", "aaaaa"))
    completions = await engine.sample("q", 100)
    assert {c.text for c in completions} == {"a" * n for n in range(5)}
    assert max(c.token_count for c in completions) == 5


async def test_a_chat_template_is_applied_when_asked_for(engine_of, folders) -> None:
    engine = engine_of(temperature=0.0, chat=True)
    [completion] = await engine.sample("hi", 1)
    assert completion.text == greedy(folders["random"], "<hi>") != greedy(folders["random"], "hi")


def test_chat_without_a_template_is_an_error(tmp_path) -> None:
    folder = tiny.save(tiny.random_model(1), tmp_path / "bare")
    with pytest.raises(EngineError, match="no chat template"):
        make(folder, chat=True)


def test_a_model_that_is_not_there_is_an_error(tmp_path) -> None:
    with pytest.raises(EngineError, match="nowhere"):
        make(tmp_path / "nowhere")


@pytest.mark.parametrize("prompt", ["", "x" * 505])
async def test_a_prompt_that_does_not_fit_is_refused_alone(engine_of, prompt) -> None:
    engine = engine_of()
    refused, fine = await asyncio.gather(
        engine.sample(prompt, 2), engine.sample("x" * 504, 2), return_exceptions=True
    )
    assert isinstance(refused, RefusedError)
    assert len(fine) == 2


async def test_loaded_weights_change_what_is_generated(engine_of, folders) -> None:
    engine = engine_of(temperature=0.0)
    texts = []
    for name in ("other", "random"):
        texts.append((await engine.sample("What is 2 + 2?", 1))[0].text)
        await engine.load(f"file://{folders[name]}")
    texts.append((await engine.sample("What is 2 + 2?", 1))[0].text)
    first, second = (greedy(folders[name], "What is 2 + 2?") for name in ("random", "other"))
    assert first != second
    assert texts == [first, second, first]


async def test_a_sharded_checkpoint_is_loaded(engine_of, folders, tmp_path) -> None:
    engine = engine_of(temperature=0.0)
    tiny.random_model(2).save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    await engine.load(str(tmp_path))
    assert (await engine.sample("hi", 1))[0].text == greedy(folders["other"], "hi")


async def test_weights_of_another_shape_are_refused_and_the_old_ones_go_on(
    engine_of, folders
) -> None:
    engine = engine_of(temperature=0.0)
    with pytest.raises(CheckpointError, match="wide"):
        await engine.load(str(folders["wide"]))
    assert (await engine.sample("hi", 1))[0].text == greedy(folders["random"], "hi")


async def test_weights_that_lack_a_tensor_are_refused(engine_of, tmp_path) -> None:
    from safetensors.torch import save_file

    engine = engine_of(temperature=0.0)
    weights = tiny.random_model(2).state_dict()
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys: model\.norm"):
        await engine.load(str(tmp_path))


async def test_out_of_memory_halves_the_batch_and_goes_on(engine_of, monkeypatch, caplog) -> None:
    caplog.set_level("WARNING")
    engine = engine_of("mixed", max_tokens=2)
    rows, generate = [], engine._model.generate

    def small(**inputs):
        rows.append(len(inputs["input_ids"]))
        if rows[-1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(**inputs)

    monkeypatch.setattr(engine._model, "generate", small)
    answers = await asyncio.gather(*[engine.sample("q", 16) for _ in range(4)])
    assert [len(completions) for completions in answers] == [16] * 4
    assert rows[:3] == [64, 32, 16]
    assert rows[3:] == [16] * 3
    assert caplog.text.count("batch halved") == 2


async def test_closing_waits_for_no_long_completion(engine_of, monkeypatch, wait_until) -> None:
    engine = engine_of("mixed", max_tokens=500)
    calls, forward = [], engine._model.model.forward

    def note(**inputs):
        calls.append(inputs)
        return forward(**inputs)

    monkeypatch.setattr(engine._model.model, "forward", note)
    sampling = asyncio.create_task(engine.sample("q", 1))
    await asyncio.to_thread(wait_until, lambda: len(calls) > 3)
    sampling.cancel()
    await engine.close()
    assert len(calls) < 500


async def test_a_prompt_too_large_for_the_memory_is_refused(engine_of, monkeypatch) -> None:
    engine = engine_of("mixed", max_tokens=2)
    generate = engine._model.generate

    def small(**inputs):
        if inputs["input_ids"].shape[1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(**inputs)

    monkeypatch.setattr(engine._model, "generate", small)
    with pytest.raises(RefusedError, match="a prompt of 101 tokens: CUDA out of memory"):
        await engine.sample("q" * 101, 8)
    assert len(await engine.sample("q", 8)) == 8


async def test_a_model_that_fails_is_the_engines_fault(engine_of, monkeypatch) -> None:
    engine = engine_of()

    def broken(**_inputs):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(engine._model, "generate", broken)
    with pytest.raises(EngineError, match="RuntimeError: device-side assert"):
        await engine.sample("q", 1)


def test_an_engine_whose_package_is_missing_names_the_extra(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        EngineError, match=r"needs vllm: pip install 'edge-curriculum\[probe,vllm\]'"
    ):
        create_engine("vllm", None, None)
    assert not issubclass(EngineError, CurriculumError)
