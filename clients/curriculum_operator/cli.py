"""The command `curriculum`."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import click

from curriculum_api.channel import TlsConfig
from curriculum_api.v1.operator_service_pb2 import DESCRIPTOR
from curriculum_operator.commands.add import add
from curriculum_operator.commands.doctor import doctor
from curriculum_operator.commands.prompts import prompts
from curriculum_operator.commands.runs import runs
from curriculum_operator.commands.stats import boundary, stats
from curriculum_operator.commands.transfer import export, import_, installed_version
from curriculum_operator.session import Settings, failures_shown, group_options, print_json


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@group_options
@click.pass_context
def cli(
    context: click.Context,
    /,
    *,
    server: str,
    token: str | None,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Shows and shapes the curricula of a curriculum-server."""
    with failures_shown():
        tls = TlsConfig.from_files(ca=files["tls_ca"], cert=files["tls_cert"], key=files["tls_key"])
    context.obj = Settings(server, token, tls, as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def version(settings: Settings, *, as_json: bool) -> None:
    """Show the versions of this program and of its contract."""
    found: dict[str, Any] = {
        "version": installed_version(),
        "contract": DESCRIPTOR.package,
        "python": platform.python_version(),
    }
    if as_json or settings.as_json:
        print_json(found)
    else:
        click.echo("{version} ({contract}, Python {python})".format(**found))


prompts.add_command(add)
runs.add_command(export)
runs.add_command(import_)
for command in (runs, prompts, stats, boundary, doctor):
    cli.add_command(command)


def main() -> None:
    cli(prog_name="curriculum")


if __name__ == "__main__":
    main()
