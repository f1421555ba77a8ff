"""`curriculum stats` and `curriculum boundary`: what moved."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from curriculum_api import limits
from curriculum_api.status import AWAY
from curriculum_api.v1.operator_service_pb2 import CompareBoundaryRequest, GetStatsRequest
from curriculum_api.v1.run_pb2 import RunConfig
from curriculum_api.v1.stats_pb2 import RunStats, StepRange
from curriculum_operator.boundary import boundary_notes, verdict
from curriculum_operator.messages import as_json
from curriculum_operator.notes import stats_notes
from curriculum_operator.render.boundary_view import boundary_view
from curriculum_operator.render.stats_view import stats_view
from curriculum_operator.session import Session, run_config, with_session


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--watch",
    "every_s",
    type=click.FloatRange(min=0.2),
    metavar="SECONDS",
    help="Look again every so many seconds, until Ctrl-C.",
)
@with_session
def stats(session: Session, run_id: str, every_s: float | None) -> None:
    """Show how difficulty is distributed and moves."""
    if every_s is not None and session.as_json:
        raise click.UsageError("--watch does not go with --json, which prints one document.")
    config, newest = run_config(session, run_id), _stats(session, run_id)
    view = stats_view(run_id, newest, config, session.out.width)
    if every_s is None:
        notes = [note.as_json() for note in stats_notes(newest, config)]
        session.show(as_json(newest) | {"notes": notes}, lambda: view)
        return
    try:
        _watch(session, view, lambda: _look(session, run_id, config), every_s)
    except KeyboardInterrupt:
        session.out.print()


def _watch(
    session: Session,
    view: RenderableType,
    look: Callable[[], RenderableType | None],
    every_s: float,
) -> None:
    """A terminal is redrawn in place; elsewhere each state is printed after the last."""
    if not session.out.is_terminal:
        while True:
            session.out.print(view)
            time.sleep(every_s)
            view = look() or Text("the server does not answer")
    with Live(view, console=session.out, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(every_s)
            fresh = look()
            view = fresh or view
            away = Text("the server does not answer; this is what it said last", "yellow")
            live.update(view if fresh else Group(view, away), refresh=True)


def _look(session: Session, run_id: str, config: RunConfig) -> RenderableType | None:
    try:
        return stats_view(run_id, _stats(session, run_id), config, session.out.width)
    except AWAY:
        return None


def _stats(session: Session, run_id: str) -> RunStats:
    request = GetStatsRequest(run_id=run_id)
    found: RunStats = session.connection.call(session.connection.stub.GetStats, request).stats
    return found


def _steps(_context: click.Context, _param: click.Parameter, text: str) -> StepRange:
    """A closed range of policy steps."""
    first, separator, last = text.partition(":")
    if not (separator and _is_step(first) and _is_step(last) and int(first) <= int(last)):
        raise click.BadParameter(f"{text}: write FIRST:LAST, for example 0:99")
    return StepRange(first_policy_step=int(first), last_policy_step=int(last))


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= limits.MAX_POLICY_STEP


def _ks(_context: click.Context, _param: click.Parameter, text: str) -> list[int]:
    parts, allowed = text.split(","), range(1, limits.MAX_GROUP_SIZE + 1)
    if not all(part.isascii() and part.isdigit() and int(part) in allowed for part in parts):
        raise click.BadParameter(
            f"{text}: write whole numbers in [1, {limits.MAX_GROUP_SIZE}], for example 1,2,4,8"
        )
    return [int(part) for part in parts]


_SPAN = "FIRST:LAST"


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--before", callback=_steps, required=True, metavar=_SPAN, help="The earlier steps.")
@click.option("--after", callback=_steps, required=True, metavar=_SPAN, help="The later steps.")
@click.option("--k", "ks", callback=_ks, default="1,2,4,8", show_default=True, metavar="K,K")
@with_session
def boundary(
    session: Session, run_id: str, *, before: StepRange, after: StepRange, ks: list[int]
) -> None:
    """Compare pass@k between two ranges of policy steps.

    When pass@1 rises and pass@k at a large k falls, the policy only sharpens what it could do
    already; when pass@k at a large k rises, its boundary expands.

    Counts are kept by window, and a window that overlaps a range counts as a whole. Old windows are
    merged, ever more steps into one: what is compared may be wider than what was asked for, and is
    shown. Two ranges within one window cannot be compared. Step 0 stays a window by itself, and so
    do the newest eight windows.
    """
    request = CompareBoundaryRequest(run_id=run_id, before=before, after=after, ks=ks)
    response = session.connection.call(session.connection.stub.CompareBoundary, request)
    said, notes = verdict(response.points), boundary_notes(response, before, after)
    document = {"verdict": said.word, "explanation": said.explanation}
    session.show(
        as_json(response) | document | {"notes": [note.as_json() for note in notes]},
        lambda: boundary_view(response, before, after, said, notes),
    )
