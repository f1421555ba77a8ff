"""`curriculum runs export` and `curriculum runs import`: a run in a file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from curriculum_api.status import AWAY
from curriculum_api.v1.run_pb2 import Run
from curriculum_operator.archive import Manifest, Reader, reading
from curriculum_operator.configuration import duration
from curriculum_operator.messages import as_json
from curriculum_operator.progress import progress
from curriculum_operator.session import Failure, Interrupted, Session, as_usage, with_session
from curriculum_operator.transferring import Exported, Mover, check

DISTRIBUTION = "edge-curriculum"

_PATIENCE = click.option(
    "--patience",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long to keep trying while the server is away.",
)


def installed_version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@click.command("export")
@click.argument("run_id", metavar="RUN")
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@_PATIENCE
@with_session
def export(session: Session, run_id: str, path: Path, *, force: bool, patience: str) -> None:
    """Write RUN into FILE: its prompts, counts, windows, checkpoints and configuration.

    Leases and the records of calls are left out: a trainer that goes on with the imported run asks
    for its batches anew. The run may be in use; what is reported meanwhile is in the file wholly
    or not at all, prompt by prompt.
    """
    if path.exists() and not force:
        raise Failure(f"{path}: exists; --force replaces it")
    mover = Mover(session.connection, _seconds(patience))
    with progress(session.err, "exporting", None, "parts") as advance:
        exported = mover.export(run_id, path, installed_version(), advance)
    document = _described(exported.manifest) | {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "content_bytes": exported.content_bytes,
        "try_count": exported.try_count,
    }
    session.show(document, lambda: _exported(exported, path))


@click.command("import")
@click.argument(
    "path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.argument("run_id", metavar="[RUN]", required=False)
@_PATIENCE
@with_session
def import_(session: Session, path: Path, run_id: str | None, *, patience: str) -> None:
    """Make RUN of an exported FILE; without RUN under the name that it had.

    The file is checked before anything is sent. The run is there once all of it is; what an
    interrupted import leaves goes within a day, and a repeat takes it up again.
    """
    mover = Mover(session.connection, _seconds(patience))
    with reading(path) as reader:
        name = run_id or reader.manifest.run_id
        mover.check_name(name)
        total = len(reader.names)
        with progress(session.err, "checking", total, "parts") as advance:
            check(reader, advance)
        with progress(session.err, "importing", total, "parts") as advance:
            run = _sent(mover, reader, name, advance)
        document = {"run": as_json(run), "file": _described(reader.manifest)}
        session.show(document, lambda: _imported(run, reader.manifest, path))


def _sent(mover: Mover, reader: Reader, name: str, advance: Callable[[int], None]) -> Run:
    advice = "what was sent is kept for a day; the same command continues from there"
    try:
        return mover.import_(reader, name, advance)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {advice}") from None
    except AWAY as error:
        raise Failure(f"{error}\n{advice}") from error


def _seconds(patience: str) -> float:
    with as_usage("--patience"):
        return duration("patience", patience).ToTimedelta().total_seconds()


def _described(manifest: Manifest) -> dict[str, object]:
    described = asdict(manifest)
    described["member_count"] = len(described.pop("members"))
    return described


def _exported(exported: Exported, path: Path) -> str:
    manifest = exported.manifest
    again = f"; begun {exported.try_count} times" if exported.try_count > 1 else ""
    return (
        f"exported {manifest.run_id}: {manifest.prompt_count:,} prompts, {_windows(manifest)}, "
        f"{path.stat().st_size:,} bytes in {path}{again}"
    )


def _imported(run: Run, manifest: Manifest, path: Path) -> str:
    was = f" (exported as {manifest.run_id})" if manifest.run_id != run.run_id else ""
    return (
        f"imported {run.run_id}{was}: {run.prompt_count:,} prompts, {_windows(manifest)}, "
        f"step {run.policy_step:,}, timeline {run.timeline}, from {path}"
    )


def _windows(manifest: Manifest) -> str:
    return f"{manifest.window_count:,} window{'' if manifest.window_count == 1 else 's'}"
