"""Charts of rows of estimates; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.intervals import Estimate

_OURS, _LIMIT, _PEER = "#d1495b", "#6b7a8f", "#2e86ab"


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure that needs no display, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, height), constrained_layout=True)


def bars(axes: Any, rows: Mapping[str, Estimate], title: str) -> None:
    """Horizontal bars with intervals, the largest at the top."""
    names = sorted(rows, key=lambda name: rows[name].mean)
    means = [rows[name].mean for name in names]
    below = [max(rows[name].mean - rows[name].low, 0.0) for name in names]
    above = [max(rows[name].high - rows[name].mean, 0.0) for name in names]
    axes.barh(names, means, xerr=(below, above), color=[colour(name) for name in names])
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def colour(name: str) -> str:
    """Ours, the limits nobody reaches, and the peers."""
    if name.startswith("edge"):
        return _OURS
    return _LIMIT if name in ("ceiling", "oracle") else _PEER


def save(figure: Any, path: Path) -> None:
    """Write the PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"wrote {path}")
