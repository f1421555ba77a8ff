"""The device, and the figures that are printed in the end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FIGURES: dict[str, Any] = {}


@pytest.fixture(scope="session")
def device() -> str:
    """`GPU_TEST_DEVICE`, or else the CUDA device, if there is one."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("transformers", reason="Transformers is not installed")
    for name in ("grpc", "google.protobuf", "prometheus_client"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    wanted = os.environ.get("GPU_TEST_DEVICE", "")
    if not wanted and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device; GPU_TEST_DEVICE=cpu runs these tests on a CPU")
    found = wanted or "cuda"
    name = torch.cuda.get_device_name() if found.startswith("cuda") else found
    FIGURES["device"] = name
    FIGURES["torch"] = torch.__version__
    return found


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    """What is measured, by name."""
    return FIGURES


@pytest.fixture(scope="session")
def folders(device: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that write an "a" three times out of four, always, or never; else a "b"."""
    from tests.probe import tiny

    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 4096}
    root = tmp_path_factory.mktemp("models")
    weights = {"mixed": {"a": 3, "b": 1}, "a": {"a": 1}, "b": {"b": 1}}
    made = {name: tiny.constant_model(pieces, **sizes) for name, pieces in weights.items()}
    made["random"] = tiny.random_model(1, **sizes)
    return {name: tiny.save(model, root / name) for name, model in made.items()}


@pytest.fixture
def with_engine(folders: dict[str, Path], device: str) -> Iterator[Callable[..., Any]]:
    """Makes an engine, awaits `work(engine)` in an event loop of its own, and closes it."""
    from curriculum_probe.engines import EngineConfig, create_engine
    from curriculum_probe.patience import Patience

    def use(work: Callable[[Any], Awaitable[Any]], model: str = "mixed", **changes: Any) -> Any:
        name = changes.pop("engine", "transformers")
        options = changes.pop("options", {"device": device})
        settings = {"max_tokens": 8, "temperature": 1.0, "concurrency": 256, **changes}
        config = EngineConfig(model=str(folders[model]), options=options, **settings)

        async def run() -> Any:
            engine = create_engine(name, config, Patience(1, threading.Event()))
            try:
                return await work(engine)
            finally:
                await engine.close()

        return asyncio.run(run())

    return use


@pytest.fixture
def timed() -> Callable[[Awaitable[Any]], Awaitable[tuple[Any, float]]]:
    """What is awaited, and the seconds that it took."""

    async def wait(work: Awaitable[Any]) -> tuple[Any, float]:
        started_s = time.perf_counter()
        return await work, time.perf_counter() - started_s

    return wait


@pytest.fixture(autouse=True)
def _info_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "curriculum_probe")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES:
        terminalreporter.section("figures")
        for name, value in FIGURES.items():
            terminalreporter.write_line(f"{name:<32} {value}")
        terminalreporter.write_line(json.dumps(FIGURES))
