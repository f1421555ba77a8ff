"""A recorded run is played as it was recorded, and what is believed of it is judged."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tests.bench.arms.base import Groups
from tests.bench.fakes import rng
from tests.bench.replay import __main__ as replay
from tests.bench.replay.environment import Replay, Trace
from tests.bench.replay.prediction import calibration_error, foretell


def small_trace():
    """Half the prompts never mixed, the others always, of unequal lengths."""
    rows = [np.full(12 + i % 3, 0 if i % 2 else 3 + i % 3) for i in range(40)]
    return Trace(tuple(rows))


def test_a_replay_serves_the_recorded_groups_in_order():
    trace = Trace((np.array([1, 3, 5, 7]), np.array([0, 8])))
    environment = Replay(trace, rng(), step_count=4, batch_size=2)
    seen = []
    for _ in range(4):
        sums = environment.draw(np.array([0, 1]), np.array([8, 8]))
        seen.append(sums[:, 0].tolist())
        environment.train(Groups.none(), np.empty(0))
    # the second prompt has two visits: its record lasts two steps, and is used up by the first
    assert [row[0] for row in seen] == [1, 3, 5, 7]
    assert (seen[0][1], seen[2][1]) == (0, 8)


def test_the_parts_of_a_recorded_group_add_up_to_it():
    trace = Trace((np.array([5, 0]),) * 3)
    environment = Replay(trace, rng(), step_count=2, batch_size=2)
    parts = environment.draw(np.array([0, 1, 0, 1]), np.array([4, 2, 4, 6]))[:, 0]
    assert parts[0] + parts[2] == 5
    assert parts[1] + parts[3] == 5


def test_constant_prompts_are_foretold_ever_better():
    foretold = foretell(small_trace(), 1.0)
    assert foretold.squared_error < 0.02
    assert -1.5 < foretold.log_score < 0.0
    assert foretold.calibration_error < 0.1


def test_calibration_error_by_hand():
    # a bin at .2 of which a half came true, and one at .9 of which all did: (2 * .3 + 2 * .1) / 4
    believed, came = np.array([0.2, 0.2, 0.9, 0.9]), np.array([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(believed, came) == pytest.approx(0.2)


def test_a_replay_runs_end_to_end(monkeypatch, capsys, tmp_path):
    path = tmp_path / "trace.json"
    rows = {str(i): (row / 8).tolist() for i, row in enumerate(small_trace().correct)}
    path.write_text(json.dumps(rows), encoding="utf-8")
    options = f"--seeds 2 --processes 1 --out {tmp_path} --arms dapo edge_default"
    monkeypatch.setattr(sys, "argv", ["replay", str(path), *options.split()])
    replay.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("edge", "uniform", "dapo", "mopps_best", "ceiling"):
        assert {"overall", "after_quarter"} <= set(result[name])
    assert {"squared_error", "log_score", "calibration_error"} <= set(result)
    assert result["ceiling"]["overall"] == 1.0
    assert 0.4 < result["uniform"]["overall"] < 0.6
    assert (tmp_path / "replay.png").stat().st_size > 0
