"""What is wrong in a store."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from curriculum_api.v1.run_pb2 import SEVERITY_ERROR, StoreFinding
from curriculum_operator.render.words import clean


def doctor_view(store: str, run_count: int, findings: Sequence[StoreFinding]) -> RenderableType:
    """The findings, the worst first."""
    errors = sum(finding.severity == SEVERITY_ERROR for finding in findings)
    warnings = len(findings) - errors
    looked = f"{clean(store)}, {_counted(run_count, 'run')}"
    if not findings:
        return Text(f"{looked}: nothing is wrong", "green")
    title = f"{looked}: {_counted(errors, 'error')}, {_counted(warnings, 'warning')}"
    if not errors:
        title += "; warnings do not fail"
    parts: list[RenderableType] = [Text(title, "bold"), Text()]
    for number, finding in enumerate(findings):
        parts += [Text()] if number else []
        parts += _finding(finding)
    return Group(*parts)


def _finding(finding: StoreFinding) -> list[RenderableType]:
    is_error = finding.severity == SEVERITY_ERROR
    word, style = ("error", "bold red") if is_error else ("warning", "yellow")
    where = f"run {finding.run_id}" if finding.run_id else "the store"
    head = Text.assemble(
        (word, style), f"  {clean(finding.kind)}  ", (clean(where), "bright_black")
    )
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, style="bright_black")
    table.add_column(overflow="fold")
    table.add_row("  ", Text(clean(finding.problem)))
    table.add_row(" →", Text(clean(finding.remedy)))
    return [head, table]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
