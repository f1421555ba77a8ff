"""The picture: how the two arms learned, and how the service's beliefs moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from train import History, Plan

COLOURS = {"edge": "#d9480f", "uniform": "#5c6b7a"}
EARLY_COLOUR = "#1c1c1c"
INK, FAINT = "#22272e", "#d5d9de"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def draw(path: Path, plan: Plan, histories: Mapping[str, History]) -> None:
    """Write a PNG of 1600 by 1120 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        figure, ((mixed, held_out), beliefs) = plt.subplots(2, 2, figsize=(10, 7), dpi=160)
        figure.text(
            0.012,
            0.955,
            "The same model, the same rollouts, another choice of prompts",
            fontsize=14,
            fontweight="bold",
        )
        rollouts = f"{plan.steps * plan.rollouts_per_step:,}"
        figure.text(0.012, 0.925, f"GRPO on Reasoning Gym tasks, {rollouts} rollouts in each arm")
        _draw_mixed(mixed, plan, histories)
        _draw_held_out(held_out, plan, histories)
        for axes, (name, history) in zip(beliefs, histories.items(), strict=True):
            _draw_beliefs(axes, name, history)
        beliefs[1].sharey(beliefs[0])
        figure.tight_layout(rect=(0, 0, 1, 0.92), h_pad=2.0, w_pad=2.0)
        figure.savefig(path)
        plt.close(figure)


def _draw_mixed(axes: Axes, plan: Plan, histories: Mapping[str, History]) -> None:
    width = max(plan.steps // 12, 1)
    for name, history in histories.items():
        x = _rollouts(plan, range(1, len(history.mixed) + 1))
        axes.plot(x, history.mixed, color=COLOURS[name], alpha=0.18, linewidth=0.8)
        smooth = _trailing_mean(history.mixed, width)
        axes.plot(x, smooth, color=COLOURS[name], linewidth=2.4)
        _label_end(axes, x[-1], smooth[-1], name)
    settled = plan.settling_steps * plan.rollouts_per_step
    axes.axvspan(0, settled, color=FAINT, alpha=0.35, lw=0)
    axes.text(settled / 2, 0.03, "first fifth", ha="center", color=INK, alpha=0.6)
    axes.set(title="Groups with a pass and a fail", ylim=(0, 1))
    _finish_curve(axes)


def _draw_held_out(axes: Axes, plan: Plan, histories: Mapping[str, History]) -> None:
    for name, history in histories.items():
        steps, rates = zip(*history.held_out, strict=True)
        x = _rollouts(plan, steps)
        axes.plot(x, rates, color=COLOURS[name], linewidth=2.4, marker="o", markersize=5)
        _label_end(axes, x[-1], rates[-1], name)
    title = f"Pass rate on {len(plan.held_out)} held-out tasks, {plan.held_out_attempts} tries each"
    axes.set(title=title)
    axes.margins(y=0.15)
    _finish_curve(axes)


def _draw_beliefs(axes: Axes, name: str, history: History) -> None:
    edges = np.linspace(0.0, 1.0, len(history.beliefs_late) + 1)
    axes.stairs(
        history.beliefs_late, edges, fill=True, color=COLOURS[name], alpha=0.75, label="at the end"
    )
    axes.stairs(
        history.beliefs_early, edges, color=EARLY_COLOUR, linewidth=1.3, label="after a fifth"
    )
    axes.set(title=f"Believed difficulty of the pool: {name}", xlim=(0, 1))
    axes.set(xlabel="believed pass rate", ylabel="prompts")
    axes.legend(loc="upper right")


def _finish_curve(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
    axes.set_xlabel("rollouts")
    axes.set_xlim(left=0)


def _label_end(axes: Axes, x: float, y: float, name: str) -> None:
    axes.annotate(
        name,
        (x, y),
        (6, 0),
        textcoords="offset points",
        va="center",
        color=COLOURS[name],
        fontweight="bold",
        annotation_clip=False,
    )


def _rollouts(plan: Plan, steps: Sequence[int]) -> np.ndarray:
    return np.asarray(steps) * plan.rollouts_per_step


def _trailing_mean(values: Sequence[float], width: int) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means
