"""What `make bench` measures first can be measured."""

from __future__ import annotations

import json
import sys

from tests.bench import bench_selection


def test_every_selection_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_selection", "--sizes", "2000"])
    bench_selection.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"probes_of_2k_ms", "select_512_of_2k_ms", "fit_of_2k_ms"} <= set(figures)
    assert min(figures.values()) > 0.0
