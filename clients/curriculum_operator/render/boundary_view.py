"""Two ranges of policy steps side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from curriculum_api.v1.stats_pb2 import BoundaryPoint, StepRange
from curriculum_operator.boundary import Verdict, change, noise
from curriculum_operator.render.words import NOTHING, steps

_BAR = 20


def boundary_view(
    points: Sequence[BoundaryPoint], before: StepRange, after: StepRange, said: Verdict
) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bright_black")
    for title in ("k", "prompts", _steps(before), _steps(after), "change"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for point in points:
        table.add_row(*_row(point))
    return Group(table, Text(), Text(said.explanation))


def _row(point: BoundaryPoint) -> tuple[str | Text, ...]:
    head = (f"{point.k}", f"{point.prompt_count:,}")
    if not point.prompt_count:
        return (*head, NOTHING, NOTHING, NOTHING, "")
    moved = change(point)
    style = "green" if moved > 0 else "red"
    if abs(moved) <= noise(point.prompt_count):
        style = "bright_black"
    arrow = "▲" if moved > 0 else "▼" if moved < 0 else " "
    return (
        *head,
        f"{point.before_pass_at_k:.3f}",
        f"{point.after_pass_at_k:.3f}",
        Text(f"{moved:+.3f}", style),
        Text(f"{arrow} {'█' * round(_BAR * abs(moved))}", style),
    )


def _steps(span: StepRange) -> str:
    return f"steps {steps(span.first_policy_step, span.last_policy_step)}"
