"""Intervals lie where they should."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.intervals import bootstrap, geometric


def test_a_bootstrap_interval_holds_the_mean():
    estimate = bootstrap([1.0, 2.0, 3.0, 4.0])
    assert estimate.low < estimate.mean == 2.5 < estimate.high


def test_a_geometric_mean_is_taken_over_seeds_and_worlds():
    assert geometric(np.log([[1.0, 4.0], [2.0, 8.0]])).mean == pytest.approx(64**0.25)
