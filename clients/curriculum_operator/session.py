"""What every command shares: the connection, where to print, and how failures are shown."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType

from curriculum_api.channel import TlsConfig
from curriculum_api.errors import CurriculumError
from curriculum_api.limits import DEFAULT_PORT
from curriculum_api.v1.operator_service_pb2 import GetRunRequest
from curriculum_api.v1.run_pb2 import Run, RunConfig
from curriculum_operator.connection import Connection
from curriculum_operator.render.words import clean

DEFAULT_SERVER = f"localhost:{DEFAULT_PORT}"

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Failure(click.ClickException):
    """A foreseen failure: a message on stderr and exit code 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {clean(self.message)}", file=file, err=file is None)


class Interrupted(Failure):
    """Stopped by Ctrl-C, with the exit code that shells use for it."""

    exit_code = 130


@dataclass(frozen=True)
class Settings:
    """What was given before the command's name."""

    server: str = DEFAULT_SERVER
    token: str | None = None
    tls: TlsConfig | None = None
    as_json: bool = False


@dataclass(frozen=True)
class Session:
    """One command's connection and consoles."""

    connection: Connection
    as_json: bool
    out: Console
    err: Console

    def show(self, document: Any, view: Callable[[], RenderableType]) -> None:
        """Prints the document under --json, else the view."""
        if self.as_json:
            print_json(document)
        else:
            self.out.print(view())


def run_config(session: Session, run_id: str) -> RunConfig:
    """By what a run is judged, among others."""
    stub = session.connection.stub
    run: Run = session.connection.call(stub.GetRun, GetRunRequest(run_id=run_id)).run
    return run.config


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def group_options(function: _Function) -> _Function:
    """The options before the command's name."""
    path = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in reversed(
        (
            click.option(
                "--server",
                "-s",
                envvar="CURRICULUM_SERVER",
                default=DEFAULT_SERVER,
                show_default=True,
                show_envvar=True,
                metavar="HOST:PORT",
                help="Where the server listens.",
            ),
            click.option(
                "--token", envvar="CURRICULUM_TOKEN", show_envvar=True, help="An operator's token."
            ),
            click.option(
                "--tls-ca",
                type=path,
                envvar="CURRICULUM_TLS_CA",
                show_envvar=True,
                help="Encrypt, and trust this CA.",
            ),
            click.option(
                "--tls-cert",
                type=path,
                envvar="CURRICULUM_TLS_CERT",
                show_envvar=True,
                help="Encrypt, and show this certificate.",
            ),
            click.option(
                "--tls-key",
                type=path,
                envvar="CURRICULUM_TLS_KEY",
                show_envvar=True,
                help="Its key.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        )
    ):
        function = option(function)
    return function


def with_session(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command its Session first, and shows what fails as the user should see it."""

    @click.option("--server", "-s", metavar="HOST:PORT", help="Where the server listens.")
    @click.option("--token", help="An operator's token.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.pass_context
    @functools.wraps(function)
    def wrapper(
        context: click.Context,
        /,
        *args: Any,
        server: str | None,
        token: str | None,
        as_json: bool,
        **kwargs: Any,
    ) -> None:
        settings = context.find_object(Settings) or Settings()
        with failures_shown():
            connection = Connection(
                server or settings.server, token=token or settings.token, tls=settings.tls
            )
            out, err = Console(highlight=False), Console(stderr=True, highlight=False)
            with contextlib.closing(connection):
                function(
                    Session(connection, as_json or settings.as_json, out, err), *args, **kwargs
                )

    return wrapper


@contextlib.contextmanager
def failures_shown() -> Iterator[None]:
    """The boundary between errors and what a user sees of them."""
    try:
        yield
    except CurriculumError as error:
        raise Failure(str(error)) from error
    except BrokenPipeError:
        raise  # the reader of our output has gone; click ends quietly
    except OSError as error:
        raise Failure(
            f"{error.filename}: {error.strerror}" if error.filename else str(error)
        ) from error


@contextlib.contextmanager
def as_usage(option: str) -> Iterator[None]:
    """Turns what is wrong with an option's value into a usage error."""
    try:
        yield
    except CurriculumError as error:
        raise click.BadParameter(clean(str(error)), param_hint=option) from None
