"""Embeddings by `--embed`: a tiny model that really reads, and the real server."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import threading

import numpy as np
import pytest
import torch

from curriculum_api.errors import InvalidRequestError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import prompt_pb2
from curriculum_probe import cli, embedding
from curriculum_probe.engines import (
    EMBEDDERS,
    Embedder,
    EngineConfig,
    EngineError,
    RefusedError,
    create_engine,
)
from curriculum_probe.patience import Patience
from curriculum_probe.service import Service
from tests.probe import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TEMPLATE = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
WIDTH = 16


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny.save(tiny.random_model(1), tmp_path_factory.mktemp("model"), TEMPLATE)


@pytest.fixture
async def engine_of(folder):
    engines = []

    def build(where=folder, **changes):
        settings = {"model": str(where), "max_tokens": 8, "temperature": 1.0, "concurrency": 64}
        config = EngineConfig(**{**settings, **changes})
        engines.append(create_engine("transformers", config, Patience(1, threading.Event())))
        return engines[-1]

    yield build
    for engine in engines:
        await engine.close()


def mean_state(folder, text):
    """What the model itself says of a text that it reads alone."""
    model = tiny.Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tiny.tokenizer()(text)["input_ids"]])
    with torch.inference_mode():
        return model.model(input_ids=ids).last_hidden_state[0].mean(0).numpy()


# The engine


def test_the_engines_that_embed_are_those_that_say_so():
    from curriculum_probe.engines.openai import OpenAIEngine
    from curriculum_probe.engines.transformers import TransformersEngine

    assert EMBEDDERS == ("transformers",)
    assert issubclass(TransformersEngine, Embedder)
    assert not issubclass(OpenAIEngine, Embedder)


async def test_an_embedding_is_the_mean_of_the_last_states_whatever_shares_its_batch(
    engine_of, folder
):
    texts = ["x", "2+2=?", "abc" * 30, "z" * 500, "x"]
    vectors = await engine_of().embed(texts)
    assert [len(vector) for vector in vectors] == [WIDTH] * 5
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(vector, mean_state(folder, text), atol=1e-5)
    assert vectors[0] == vectors[4]
    assert len({tuple(np.round(vector, 3)) for vector in vectors}) == 4


async def test_a_chat_template_is_applied_as_in_sampling(engine_of, folder):
    [vector] = await engine_of(chat=True).embed(["hi"])
    np.testing.assert_allclose(vector, mean_state(folder, "<hi>"), atol=1e-5)
    assert not np.allclose(vector, mean_state(folder, "hi"), atol=1e-3)


async def test_a_prompt_that_does_not_fit_is_refused_alone(engine_of, folder):
    # 505 to 512 leave no room to sample, and are read all the same.
    first, refused, longest, empty = await engine_of().embed(["a", "x" * 513, "x" * 512, ""])
    assert isinstance(refused, RefusedError)
    assert "513 tokens" in str(refused)
    assert isinstance(empty, RefusedError)
    np.testing.assert_allclose(first, mean_state(folder, "a"), atol=1e-5)
    np.testing.assert_allclose(longest, mean_state(folder, "x" * 512), atol=1e-5)


async def test_out_of_memory_halves_the_batch_and_goes_on(engine_of, monkeypatch, caplog):
    engine = engine_of()
    sizes, forward = [], engine._model.model.forward

    def small(**inputs):
        rows, width = inputs["input_ids"].shape
        sizes.append((rows, width))
        if rows * width > 130 or width > 100:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    monkeypatch.setattr(engine._model.model, "forward", small)
    texts = [f"{n:05}" for n in range(60)]
    vectors = await engine.embed([*texts, "y" * 101])
    assert isinstance(vectors[-1], RefusedError)
    assert "101 tokens: CUDA out of memory" in str(vectors[-1])
    assert len({tuple(vector) for vector in vectors[:-1]}) == 60
    assert max(rows for rows, _ in sizes[-3:]) < 60
    assert "batch halved" in caplog.text
    known = len(sizes)
    await engine.embed(texts)
    assert all(rows * width <= 130 for rows, width in sizes[known:])


async def test_batches_are_bounded(engine_of, monkeypatch):
    engine = engine_of(concurrency=4)
    sizes, forward = [], engine._model.model.forward

    def note(**inputs):
        sizes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(engine._model.model, "forward", note)
    engine._embedded_tokens = 30
    vectors = await engine.embed(["a"] * 9 + ["b" * 10] * 4)
    assert sizes == [(3, 10), (3, 10), (4, 1), (3, 1)]
    assert len(vectors) == 13


async def test_a_model_that_fails_is_the_engines_fault(engine_of, monkeypatch):
    engine = engine_of()

    def broken(**_inputs):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(engine._model.model, "forward", broken)
    with pytest.raises(EngineError, match="RuntimeError: device-side assert"):
        await engine.embed(["q"])


async def test_sampling_and_embedding_at_once_do_not_disturb_each_other(engine_of, folder):
    engine = engine_of(temperature=0.0)
    completions, [vector] = await asyncio.gather(engine.sample("2+2=?", 3), engine.embed(["q"]))
    assert len({completion.text for completion in completions}) == 1
    np.testing.assert_allclose(vector, mean_state(folder, "q"), atol=1e-5)


# The worker


def unembedded(stubs, run_id):
    answer = stubs.probe.ListUnembeddedPrompts(
        pr.ListUnembeddedPromptsRequest(run_id=run_id, page_size=1000)
    )
    return [prompt.prompt_id for prompt in answer.prompts]


@pytest.fixture
def run_of(new_run, stubs):
    """A run with these texts, named by their numbers."""

    def create(*texts):
        run_id = new_run()
        prompts = [
            prompt_pb2.Prompt(prompt_id=f"p{n}", domain="d", text=text)
            for n, text in enumerate(texts)
        ]
        stubs.operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=prompts))
        return run_id

    return create


@pytest.fixture
def service_of(server):
    services = []

    def connect(run_id, stop=None):
        patience = Patience(5, stop or threading.Event())
        services.append(Service(server.address, run_id, patience=patience))
        return services[-1]

    yield connect
    for service in services:
        service.close()


def kept(server, run_id):
    """By prompt_id, what this server has of it."""
    catalog = server.app.engine.served(run_id).run.mirror.catalog
    return {
        catalog.ids[index]: np.frombuffer(vector, "<f2").astype(float)
        for index, vector in catalog.embeddings.items()
    }


async def embed(service, engine, stop=None):
    await embedding.embed_prompts(service, engine, stop or threading.Event())


async def test_every_prompt_is_embedded_and_equal_texts_alike(
    run_of, service_of, engine_of, server, folder, caplog
):
    texts = [*(f"{n}+{n}=?" for n in range(30)), "same", "same"]
    run_id = run_of(*texts)
    await embed(service_of(run_id), engine_of())
    vectors = kept(server, run_id)
    assert set(vectors) == {f"p{n}" for n in range(32)}
    for n, text in enumerate(texts):
        np.testing.assert_allclose(vectors[f"p{n}"], mean_state(folder, text), atol=2e-3)
    np.testing.assert_allclose(vectors["p30"], vectors["p31"], atol=1e-3)
    assert len({tuple(np.round(vector, 2)) for vector in vectors.values()}) > 25
    assert "embedding ended embedded=32 of=32 added=32" in caplog.text


async def test_each_prompt_is_reported_once_and_a_second_worker_adds_none(
    run_of, service_of, engine_of, server, stubs, caplog, monkeypatch
):
    monkeypatch.setattr(embedding, "REPORT_PROMPTS", 7)
    run_id, engine = run_of(*(f"{n}" for n in range(40))), engine_of()
    reported, service = [], service_of(run_id)
    add = service.add_embeddings

    def note(name, embeddings):
        reported.extend(each.prompt_id for each in embeddings)
        return add(name, embeddings)

    monkeypatch.setattr(service, "add_embeddings", note)
    await embed(service, engine)
    assert sorted(reported) == sorted(f"p{n}" for n in range(40))
    before = kept(server, run_id)
    caplog.clear()
    await embed(service_of(run_id), engine)
    assert "embedding ended embedded=0 of=0 added=0" in caplog.text
    assert {name: tuple(v) for name, v in kept(server, run_id).items()} == {
        name: tuple(v) for name, v in before.items()
    }
    stubs.operator.AddPrompts(
        op.AddPromptsRequest(
            run_id=run_id, prompts=[prompt_pb2.Prompt(prompt_id="new", domain="d", text="new")]
        )
    )
    await embed(service, engine)
    assert reported[40:] == ["new"]


async def test_workers_at_once_share_the_work_and_lose_nothing(
    run_of, service_of, engine_of, stubs, monkeypatch, caplog
):
    monkeypatch.setattr(embedding, "REPORT_PROMPTS", 10)
    run_id = run_of(*(f"{n}" for n in range(200)))
    engines = [engine_of(), engine_of()]
    await asyncio.gather(*[embed(service_of(run_id), engine) for engine in engines])
    ended = re.findall(r"embedding ended embedded=(\d+) of=\d+ added=(\d+)", caplog.text)
    embedded, added = ([int(pair[at]) for pair in ended] for at in (0, 1))
    assert sum(added) == 200
    assert min(added) > 40
    # Each draws 10 of at most 200, so that hardly all of what is embedded is embedded twice.
    assert sum(embedded) < 330
    assert unembedded(stubs, run_id) == []


async def test_prompts_that_cannot_be_embedded_are_skipped_with_one_warning(
    run_of, service_of, engine_of, stubs, caplog, monkeypatch
):
    monkeypatch.setattr(embedding, "PAGE_PROMPTS", 3)
    long = ["x" * 600] * 4
    run_id = run_of(*long, "a", "b", "x" * 700, "c", "d", "e")
    await embed(service_of(run_id), engine_of())
    assert unembedded(stubs, run_id) == ["p0", "p1", "p2", "p3", "p6"]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert re.match(r"prompt not embedded first=p\d because=a prompt of \d00 tokens", warnings[0])
    assert warnings[1] == "prompts not embedded count=5"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 65_505.0])
async def test_numbers_that_the_server_would_refuse_are_skipped(run_of, service_of, stubs, number):
    class Wild:
        async def embed(self, prompts):
            return [[number if text == "b" else 65_504.0, 1.0] for text in prompts]

    run_id = run_of("a", "b", "c")
    await embed(service_of(run_id), Wild())
    assert unembedded(stubs, run_id) == ["p1"]


async def test_an_engine_with_another_length_ends_with_what_the_server_says(run_of, service_of):
    class Narrow:
        async def embed(self, prompts):
            return [[1.0]] * len(prompts)

    run_id = run_of("a", "b")
    with_one = service_of(run_id)
    with_one.add_embeddings("e", [prompt_pb2.PromptEmbedding(prompt_id="p0", embedding=[1, 2])])
    with pytest.raises(InvalidRequestError, match="1 numbers of prompt_id='p1': must be 2"):
        await embed(with_one, Narrow())


async def test_being_stopped_reports_what_was_embedded_and_the_next_goes_on(
    run_of, service_of, engine_of, stubs, monkeypatch
):
    monkeypatch.setattr(embedding, "PROMPTS_AT_ONCE", 5)
    run_id, stop, engine = run_of(*(f"{n}" for n in range(40))), threading.Event(), engine_of()
    calls, own = [], engine.embed

    async def once(prompts):
        calls.append(len(prompts))
        if len(calls) == 3:
            stop.set()
        return await own(prompts)

    monkeypatch.setattr(engine, "embed", once)
    await embed(service_of(run_id, stop), engine, stop)
    assert calls == [5, 5, 5]
    assert len(unembedded(stubs, run_id)) == 25
    await embed(service_of(run_id), engine)
    assert calls == [5] * 8
    assert unembedded(stubs, run_id) == []


async def test_progress_is_shown_every_few_seconds(
    run_of, service_of, engine_of, monkeypatch, caplog
):
    monkeypatch.setattr(embedding, "LOG_INTERVAL_S", 0.0)
    monkeypatch.setattr(embedding, "PROMPTS_AT_ONCE", 10)
    await embed(service_of(run_of(*(f"{n}" for n in range(30)))), engine_of())
    shown = re.findall(
        r"embedding embedded=(\d+) of=(\d+) added=\d+ prompts_per_s=[\d.]+ eta_s=\d+", caplog.text
    )
    assert shown == [("10", "30"), ("20", "30"), ("30", "30")]


# The command


@pytest.fixture
def words(pool):
    """Texts that end in a letter of their own: what the model sees of them says what passes."""
    for n in range(24):
        pool.add(f"{'ab'[n % 2] * 12}{n}", {"answer": "a"}, f"p{n}")
    return pool


def test_the_prior_uses_the_embeddings_and_every_server_selects_the_same(
    words, command, folder, server, start_server, stubs
):
    options = {"engine": "transformers", "model": folder, "endpoint": None, "max_tokens": 2}
    assert cli.main([*command(**options), "--embed"]) == 0
    assert unembedded(stubs, words.run_id) == []
    other = start_server()
    believed = [states(where, words.run_id) for where in (stubs, other.stubs)]
    assert believed[0] == believed[1]
    for where in (server, other):
        catalog = where.app.engine.served(words.run_id).run.mirror.catalog
        assert any(name.startswith("embedding:") for name in catalog.features.names)
        assert not any(name.startswith("text:") for name in catalog.features.names)
    assert sum(words.attempts().values()) > 0  # and then it probed


def test_a_signal_ends_the_command_between_batches_and_nothing_is_probed(
    words, command, folder, stubs, monkeypatch, wait_until
):
    from curriculum_probe.engines.transformers import TransformersEngine

    monkeypatch.setattr(embedding, "PROMPTS_AT_ONCE", 5)
    own = TransformersEngine.embed

    async def signalled(self, prompts):
        found = await own(self, prompts)
        os.kill(os.getpid(), signal.SIGTERM)
        # It was noticed once a second one would end the process.
        await asyncio.to_thread(
            wait_until, lambda: signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        )
        return found

    monkeypatch.setattr(TransformersEngine, "embed", signalled)
    options = {"engine": "transformers", "model": folder, "endpoint": None, "rounds": None}
    assert cli.main([*command(**options), "--embed"]) == 0
    assert len(unembedded(stubs, words.run_id)) == 19
    assert not any(words.attempts().values())


def states(stubs, run_id):
    found = stubs.operator.ListPrompts(op.ListPromptsRequest(run_id=run_id, page_size=1000))
    return [(s.prompt_id, s.pass_rate, s.pass_rate_low, s.pass_rate_high) for s in found.prompts]


@pytest.mark.parametrize("name", ["openai", "vllm"])
def test_an_engine_that_only_samples_is_refused_at_the_start(command, error_line, name):
    assert cli.main([*command(engine=name), "--embed"]) == 1
    assert error_line() == (
        f"error: embed: engine='{name}' gives no embeddings: must be transformers"
    )
