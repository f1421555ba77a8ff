"""`curriculum runs`: creates, shows, changes and deletes runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from curriculum_api import limits
from curriculum_api.errors import CorruptStateError, NotFoundError
from curriculum_api.v1.operator_service_pb2 import (
    CreateRunRequest,
    DeleteRunRequest,
    GetRunRequest,
    ListRunsRequest,
    ListRunsResponse,
    UpdateRunRequest,
)
from curriculum_api.v1.run_pb2 import Run, RunConfig
from curriculum_operator import configuration
from curriculum_operator.messages import as_json
from curriculum_operator.paging import pages
from curriculum_operator.render.run_view import run_view, runs_view
from curriculum_operator.session import Session, as_usage, with_session

_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.toml",
    help="Keys mirror RunConfig: window_steps = 10, [selection] optimism = 1.5, [[channels]] …",
)
_SET = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="One key of the configuration, for example selection.optimism=1.5 or, for short, "
    "optimism=1.5; domain_shares.math=0.5; sampling.temperature=0.7. Wins over --config.",
)

_SHORTHANDS = ("strategy", "group_size", "pass_threshold", "seed", "window_steps", "lease_ttl")


@click.group()
def runs() -> None:
    """Create, show, change, move and delete runs."""


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.option("--strategy", metavar="NAME", help="edge, thompson or uniform.")
@click.option("--group-size", metavar="N", help="Attempts per prompt.")
@click.option("--pass-threshold", metavar="REWARD", help="An attempt passes from this reward on.")
@click.option("--seed", metavar="N", help="Every random choice of the run derives from it.")
@click.option("--window-steps", metavar="N", help="Policy steps counted together.")
@click.option("--lease-ttl", metavar="TIME", help="How long a served prompt is withheld: 30m.")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="NAME:MIN:MAX",
    help="A number that outcomes may carry beside the reward.",
)
@click.option(
    "--objective",
    metavar="NAME=WEIGHT,…",
    help="What prompts are judged by, where it is not the pass: reward=0.7,explanation=0.3.",
)
@_CONFIG
@_SET
@with_session
def create(
    session: Session,
    run_id: str,
    config_path: Path | None,
    assignments: Sequence[str],
    channels: Sequence[str],
    objective: str | None,
    **shorthands: Any,
) -> None:
    """Make an empty run. What is not given takes the server's default.

    Later wins: --config, --set, then the other options.
    """
    config = _config(config_path, assignments)
    for key in _SHORTHANDS:
        if shorthands[key] is not None:
            with as_usage(f"--{key.replace('_', '-')}"):
                configuration.assign(config, key, shorthands[key])
    for text in channels:
        with as_usage("--channel"):
            config.channels.append(configuration.channel(text))
    if objective is not None:
        with as_usage("--objective"):
            weights = configuration.weights(objective)
        config.objective.clear()
        config.objective.update(weights)
    request = CreateRunRequest(run_id=run_id, config=config)
    run = session.connection.call(session.connection.stub.CreateRun, request).run
    session.show(as_json(run), lambda: run_view(run))


@runs.command("list")
@with_session
def list_(session: Session) -> None:
    """Show every run."""

    def fetch(token: str) -> ListRunsResponse:
        request = ListRunsRequest(page_size=limits.MAX_PAGE_SIZE, page_token=token)
        response: ListRunsResponse = session.connection.call(
            session.connection.stub.ListRuns, request
        )
        return response

    found = [run for page in pages(fetch) for run in page.runs]
    session.show({"runs": [as_json(run) for run in found]}, lambda: runs_view(found))


@runs.command()
@click.argument("run_id", metavar="RUN")
@with_session
def show(session: Session, run_id: str) -> None:
    """Show one run with its configuration."""
    run = session.connection.call(session.connection.stub.GetRun, GetRunRequest(run_id=run_id)).run
    session.show(as_json(run), lambda: run_view(run))


@runs.command()
@click.argument("run_id", metavar="RUN")
@_CONFIG
@_SET
@with_session
def update(
    session: Session, run_id: str, config_path: Path | None, assignments: Sequence[str]
) -> None:
    """Change what may change after creation; the server names what may not."""
    if config_path is None and not assignments:
        raise click.UsageError("Nothing to change: give --set or --config.")
    request = UpdateRunRequest(run_id=run_id, config=_config(config_path, assignments))
    run = session.connection.call(session.connection.stub.UpdateRun, request).run
    session.show(as_json(run), lambda: run_view(run))


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_session
def delete(session: Session, run_id: str, *, yes: bool) -> None:
    """Remove a run with its prompts and its history. Asks first."""
    stub = session.connection.stub
    try:
        run = session.connection.call(stub.GetRun, GetRunRequest(run_id=run_id)).run
        question = f"Delete {run.run_id}, its {run.prompt_count:,} prompts and all its history?"
    except (NotFoundError, CorruptStateError) as error:
        # An interrupted deletion or import leaves a part of a run, and a store can lose one: only
        # DeleteRun knows.
        if isinstance(error, NotFoundError) and not yes:
            raise
        run = Run(run_id=run_id)
        question = f"{error}\nDelete what may be left of {run_id}?"
    if not yes:
        click.confirm(question, abort=True, err=True)
    session.connection.call(stub.DeleteRun, DeleteRunRequest(run_id=run_id))
    deleted = {"run_id": run.run_id, "prompt_count": run.prompt_count, "deleted": True}
    session.show(deleted, lambda: f"deleted {run.run_id} with {run.prompt_count:,} prompts")


def _config(path: Path | None, assignments: Sequence[str]) -> RunConfig:
    config = configuration.config_from_toml(path) if path else RunConfig()
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{assignment}: write KEY=VALUE", param_hint="--set")
        with as_usage("--set"):
            configuration.assign(config, key, text)
    return config
