"""`curriculum doctor`: what is wrong in a store."""

from __future__ import annotations

import click

from curriculum_api.v1.operator_service_pb2 import CheckStoreRequest, CheckStoreResponse
from curriculum_api.v1.run_pb2 import SEVERITY_ERROR, StoreFinding
from curriculum_operator.messages import as_json
from curriculum_operator.paging import pages
from curriculum_operator.progress import progress
from curriculum_operator.render.doctor_view import doctor_view
from curriculum_operator.session import Session, with_session


@click.command()
@click.argument("run_id", metavar="[RUN]", default="")
@with_session
@click.pass_context
def doctor(context: click.Context, /, session: Session, run_id: str) -> None:
    """Look for what is wrong in the store: of RUN, or of every run and the store's settings.

    Changes nothing. An error is something that the store must not hold, or lacks; the exit code is
    1 if there is one. A warning says what could be lost though nothing is, and does not fail.
    """
    found: list[StoreFinding] = []
    run_ids: dict[str, None] = {}
    store = ""
    with progress(session.err, "looking", None, "runs") as advance:
        for page in pages(lambda token: _fetch(session, run_id, token)):
            found += page.findings
            advance(len(page.run_ids))
            run_ids |= dict.fromkeys(page.run_ids)
            store = page.store
    found.sort(key=lambda finding: -finding.severity)
    errors = sum(finding.severity == SEVERITY_ERROR for finding in found)
    document = {
        "store": store,
        "run_ids": list(run_ids),
        "error_count": errors,
        "warning_count": len(found) - errors,
        "findings": [as_json(finding) for finding in found],
    }
    session.show(document, lambda: doctor_view(store, len(run_ids), found))
    context.exit(1 if errors else 0)


def _fetch(session: Session, run_id: str, token: str) -> CheckStoreResponse:
    request = CheckStoreRequest(run_id=run_id, page_token=token)
    response: CheckStoreResponse = session.connection.call(
        session.connection.stub.CheckStore, request
    )
    return response
