"""`curriculum prompts list` and `show`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from curriculum_api import limits
from curriculum_api.v1.operator_service_pb2 import (
    GetPromptRequest,
    ListPromptsRequest,
    ListPromptsResponse,
)
from curriculum_api.v1.prompt_pb2 import PromptState
from curriculum_operator.messages import BANDS, as_json
from curriculum_operator.paging import pages
from curriculum_operator.render.prompt_view import prompt_view, prompts_view
from curriculum_operator.session import Session, run_config, with_session

DEFAULT_LIMIT = 50


@click.group()
def prompts() -> None:
    """Add prompts to a run's pool and look at them."""


@prompts.command("list")
@click.argument("run_id", metavar="RUN")
@click.option("--domain", default="", help="Only this domain.")
@click.option("--band", type=click.Choice(list(BANDS)), help="Only this band.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="At most so many, in the order in which they were added.",
)
@with_session
def list_(session: Session, run_id: str, domain: str, band: str | None, *, limit: int) -> None:
    """Show prompts with what is believed about them."""
    request = ListPromptsRequest(run_id=run_id, domain=domain)
    if band is not None:
        request.band = BANDS[band]
    found = list(_listed(session, request, limit))
    session.show(
        {"prompts": [as_json(state) for state in found]},
        lambda: prompts_view(found, run_config(session, run_id), session.out.width),
    )


def _listed(session: Session, request: ListPromptsRequest, limit: int) -> Iterator[PromptState]:
    request.page_size = min(limit, limits.MAX_PAGE_SIZE)

    def fetch(token: str) -> ListPromptsResponse:
        request.page_token = token
        response: ListPromptsResponse = session.connection.call(
            session.connection.stub.ListPrompts, request
        )
        return response

    left = limit
    for page in pages(fetch):
        yield from page.prompts[:left]
        left -= len(page.prompts)
        if left <= 0:
            return


@prompts.command()
@click.argument("run_id", metavar="RUN")
@click.argument("prompt_id", metavar="ID")
@with_session
def show(session: Session, run_id: str, prompt_id: str) -> None:
    """Show one prompt, the belief about it and its history."""
    request = GetPromptRequest(run_id=run_id, prompt_id=prompt_id)
    response = session.connection.call(session.connection.stub.GetPrompt, request)
    session.show(
        as_json(response),
        lambda: prompt_view(response, run_config(session, run_id), session.out.width),
    )
