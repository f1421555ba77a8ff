"""Tables over the logarithms of parameters, read by linear interpolation."""

from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats, Ints

Place = tuple[Ints, Floats]
"""The node below, and how far on the way to the next, in [0, 1]."""


@dataclass(frozen=True)
class LogGrid:
    """`count` nodes from `low` to `high`, evenly spaced in their logarithm."""

    low: float
    high: float
    count: int

    @property
    def nodes(self) -> Floats:
        """(count,)"""
        return np.exp(np.linspace(np.log(self.low), np.log(self.high), self.count))

    def locate(self, parameter: Floats) -> Place:
        """Where parameters > 0 lie between the nodes; outside, at the nearest one."""
        # In place here and below: selection reads tables for thousands of prompts a batch.
        position, low = np.log(parameter), np.log(self.low)
        position -= low
        position /= (np.log(self.high) - low) / (self.count - 1)
        np.clip(position, 0.0, self.count - 1.000001, out=position)
        node = position.astype(np.intp)
        position -= node
        return node, position

    def read(self, table: Floats, row: Place, column: Place) -> Floats:
        """From a (count**2,) table, row by row."""
        (row_node, in_row), (column_node, in_column) = row, column
        node = row_node * self.count + column_node
        above = read_line(table, (node, in_column))
        below = read_line(table, (node + self.count, in_column))
        below -= above
        below *= in_row
        above += below
        return above


def read_line(table: Floats, place: Place) -> Floats:
    """From a table with one value per node."""
    node, on_the_way = place
    value = table.take(node)
    value += on_the_way * (table.take(node + 1) - value)
    return value
