"""The benchmark of TRL's adapter, small enough for a test."""

import json

import pytest

from tests.bench import bench_trl

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_both_ways_are_measured_with_and_without_prefetch(capsys) -> None:
    found = bench_trl.measure(bench_trl.options_for(["--quick"]))
    for way in bench_trl.WAYS:
        assert set(found[way]) == {"prefetch", "no prefetch", "of it report", "whole step"}
        for low, median, high in found[way].values():
            assert 0 < low <= median <= high
        assert found[way]["no prefetch"][1] < found[way]["whole step"][2]
    bench_trl.show(found)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
