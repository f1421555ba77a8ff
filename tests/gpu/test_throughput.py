"""A worker's throughput next to its engine's own: `tests/bench/bench_probe.py` on the device."""

from __future__ import annotations

import importlib.util
import os

import pytest

pytestmark = pytest.mark.gpu
ENOUGH = 0.95
ENOUGH_ON_CPU = 0.5
"""There other work, the server's included, takes the same processors."""


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_worker_keeps_the_engine_busy(engine, device, figures, capfd) -> None:
    if not importlib.util.find_spec(engine):
        pytest.skip(f"{engine} is not installed")
    from tests.bench import bench_probe

    arguments = ["--engine", engine, "--device", device]
    arguments += ["--model", os.environ.get("GPU_TEST_MODEL", "")]
    on_cuda = device.startswith("cuda")
    if rows := os.environ.get("GPU_TEST_ROWS", "").split():
        arguments += ["--rows", *rows]
    if engine == "vllm":
        options = {"max_model_len": "1024", "gpu_memory_utilization": "0.4"} if on_cuda else {}
        options = options or {"max_model_len": "512", "enforce_eager": "true", "dtype": "float32"}
        arguments += [f"--engine-option={name}={value}" for name, value in options.items()]
    if on_cuda:
        arguments += ["--tokens", "128", "--repetitions", "3"]
    else:
        arguments += ["--quick", "--repetitions", "2", "--tokens", "16"]
    with capfd.disabled():
        measured = bench_probe.measure(bench_probe.options_for(arguments))
    figures[f"{engine}_throughput"] = measured
    assert measured["throughput_ratio"] >= (ENOUGH if on_cuda else ENOUGH_ON_CPU)
