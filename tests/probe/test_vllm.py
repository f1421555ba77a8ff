"""The engine `vllm`, where vLLM is installed: `make test-vllm`."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter

import pytest

pytest.importorskip(
    "vllm", reason="vLLM is not installed here, see make test-vllm", exc_type=ImportError
)

from curriculum_api.v1 import run_pb2
from curriculum_api.v1 import trainer_service_pb2 as trainer_pb
from curriculum_probe.engines import CheckpointError, EngineConfig, RefusedError, create_engine
from curriculum_probe.patience import Patience
from tests.probe import tiny
from tests.probe.bounds import most_off

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SIZES = {"hidden_size": 64, "intermediate_size": 64}
"""vLLM wants heads of at least 32."""
OPTIONS = {"enforce_eager": True, "dtype": "float32", "max_model_len": 128}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    weights = {"mixed": {"a": 3, "b": 1}, "a": {"a": 1}, "b": {"b": 1}}
    return {
        name: tiny.save(tiny.constant_model(pieces, **SIZES), root / name)
        for name, pieces in weights.items()
    }


@pytest.fixture
async def engine_of(folders):
    engines = []

    def build(name, **changes):
        settings = {"max_tokens": 1, "temperature": 1.0, "concurrency": 64, "options": OPTIONS}
        config = EngineConfig(model=str(folders[name]), **{**settings, **changes})
        engines.append(create_engine("vllm", config, Patience(1, threading.Event())))
        return engines[-1]

    yield build
    for engine in engines:
        await engine.close()


async def test_attempts_are_drawn_from_the_models_distribution(engine_of) -> None:
    engine = engine_of("mixed")
    n, p = 800, 0.75
    answers = await asyncio.gather(*[engine.sample(f"q{number}", 8) for number in range(n // 8)])
    counts = Counter(completion.text for completions in answers for completion in completions)
    assert counts.total() == n
    assert set(counts) == {"a", "b"}
    assert abs(counts["a"] - n * p) <= most_off(n, p)


async def test_loaded_weights_change_what_is_generated(engine_of, folders, tmp_path) -> None:
    """Without a restart, and without what was computed of the same prompt before."""
    engine = engine_of("a")
    llm, texts = engine._llm, []
    for name in ("b", "a", "b"):
        texts += [completion.text for completion in await engine.sample("q" * 60, 2)]
        await engine.load(f"file://{folders[name]}")
    texts += [completion.text for completion in await engine.sample("q" * 60, 2)]
    assert texts == list("aabbaabb")
    assert engine._llm is llm

    half = shutil.copytree(folders["a"], tmp_path / "half")
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="half-written"):
        await engine.load(str(half))
    wide = {**SIZES, "intermediate_size": 96}
    other = tiny.save(tiny.constant_model({"a": 1}, **wide), tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"mlp\.\w+\.weight is"):
        await engine.load(str(other))
    assert (await engine.sample("q" * 60, 1))[0].text == "b"


async def test_a_prompt_that_does_not_fit_is_refused_alone(engine_of) -> None:
    engine = engine_of("a", max_tokens=8)
    refused, fine = await asyncio.gather(
        engine.sample("x" * 128, 2), engine.sample("x", 2), return_exceptions=True
    )
    assert isinstance(refused, RefusedError)
    assert [completion.text for completion in fine] == ["a" * 8] * 2


def test_a_run_is_probed(probe, pool, folders) -> None:
    for number in range(6):
        pool.add(f"prompt {number}", {"answer": "a"})
    options = [f"{name}={str(value).lower()}" for name, value in OPTIONS.items()]
    assert probe(engine="vllm", model=folders["a"], max_tokens=1, engine_option=options) == 0
    assert set(pool.attempts().values()) == set(pool.passes().values()) == {8}


def test_published_weights_are_sampled(probe, pool, stubs, folders) -> None:
    for number in range(6):
        pool.add(f"prompt {number}", {"answer": "a"})
    policy = run_pb2.Policy(policy_step=3, uri=str(folders["a"]))
    stubs.trainer.PublishPolicy(trainer_pb.PublishPolicyRequest(run_id=pool.run_id, policy=policy))
    engine = {"engine": "vllm", "model": folders["b"], "max_tokens": 1}
    options = [f"{name}={str(value).lower()}" for name, value in OPTIONS.items()]
    assert probe(**engine, policy_step=None, attempts=8, engine_option=options) == 0
    assert set(pool.attempts().values()) == set(pool.passes().values()) == {8}
