"""Tables over logarithms."""

import numpy as np

from curriculum.grid import LogGrid, read_line

GRID = LogGrid(0.01, 100.0, 9)


def test_what_is_linear_in_the_logarithms_is_read_exactly():
    log = np.log(GRID.nodes)
    table = (2.0 * log[:, None] - 3.0 * log[None, :]).ravel()
    a, b = np.exp(np.random.default_rng(0).uniform(np.log(0.01), np.log(100.0), (2, 500)))
    read = GRID.read(table, GRID.locate(a), GRID.locate(b))
    np.testing.assert_allclose(read, 2.0 * np.log(a) - 3.0 * np.log(b), atol=1e-12)
    np.testing.assert_allclose(read_line(log, GRID.locate(a)), np.log(a), atol=1e-12)


def test_outside_the_nodes_the_nearest_one_is_read():
    ends = read_line(np.arange(9.0), GRID.locate(np.array([1e-9, 0.01, 100.0, 1e9])))
    np.testing.assert_allclose(ends, [0.0, 0.0, 8.0, 8.0], atol=1e-5)
