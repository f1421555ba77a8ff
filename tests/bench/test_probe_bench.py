"""The benchmark of the worker's throughput, small enough for a test."""

import pytest

from tests.bench import bench_probe, probe_sides
from tests.bench.probe_sides import Pace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TINY = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64}
FEW = ["--device", "cpu", "--rows", "16", "--tokens", "8", "--attempts", "4", "--batches", "2"]
FEW += ["--repetitions", "2", "--verifier", "exact"]


@pytest.mark.parametrize("server", ["curriculum-server", "a stand-in, for lack of nothing_at_all"])
def test_all_sides_sample_the_same_attempts(monkeypatch, server) -> None:
    monkeypatch.setattr(probe_sides, "SMALL", TINY)
    if server != "curriculum-server":
        monkeypatch.setattr(probe_sides, "SERVER_NEEDS", ("nothing_at_all",))
    found = bench_probe.measure(bench_probe.options_for(FEW))
    assert found["server"] == server
    [only] = found["by_rows"]
    assert (only["rows"], only["prompts"]) == (16, 32)
    assert found["throughput_ratio"] == only["throughput_ratio"] > 0
    assert only["generate_ratio"] > 0
    assert only["throughput_ratio_spread"][0] <= only["throughput_ratio"]


def test_a_ratio_is_the_median_of_the_repetitions() -> None:
    sides = bench_probe.Sides(8, 32, on_cpu=True)
    for elapsed_s in (1.0, 2.0, 4.0):
        sides.add("worker", Pace(32, 100, 2 * elapsed_s, elapsed_s))
        sides.add("engine", Pace(32, 100, 1.0, elapsed_s))
    found = sides.summary()
    assert found["throughput_ratio"] == 0.25
    assert found["throughput_ratio_spread"] == [0.125, 0.5]
    assert found["cpu_ratio"] == 1.0
    assert found["engine_tokens_per_s"] == 100.0
