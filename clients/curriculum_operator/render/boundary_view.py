"""Two ranges of policy steps side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from curriculum_api.v1.operator_service_pb2 import CompareBoundaryResponse
from curriculum_api.v1.stats_pb2 import BoundaryPoint, StepRange
from curriculum_operator.boundary import Verdict, change, noise, span
from curriculum_operator.notes import Note
from curriculum_operator.render.words import NOTHING

_BAR = 20


def boundary_view(
    response: CompareBoundaryResponse,
    before: StepRange,
    after: StepRange,
    said: Verdict,
    notes: Sequence[Note],
) -> RenderableType:
    """Shows the steps that were compared; those asked for where the server does not tell."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bright_black")
    earlier = span(response.before if response.HasField("before") else before)
    later = span(response.after if response.HasField("after") else after)
    for title in ("k", "prompts", earlier, later, "change"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for point in response.points:
        table.add_row(*_row(point))
    shown = [Text(note.explanation, "yellow") for note in notes]
    return Group(table, Text(), *shown, Text(said.explanation))


def _row(point: BoundaryPoint) -> tuple[str | Text, ...]:
    head = (f"{point.k}", f"{point.prompt_count:,}")
    if not point.prompt_count:
        return (*head, NOTHING, NOTHING, NOTHING, "")
    moved = round(change(point), 3)
    arrow, sign, style = ("▲", "+", "green") if moved > 0 else ("▼", "-", "red")
    if abs(change(point)) <= noise(point.prompt_count):
        style = "bright_black"
    if not moved:
        arrow = sign = ""
    return (
        *head,
        f"{point.before_pass_at_k:.3f}",
        f"{point.after_pass_at_k:.3f}",
        Text(f"{sign}{abs(moved):.3f}", style),
        Text(f"{arrow} {'█' * round(_BAR * abs(moved))}", style),
    )
