"""`curriculum prompts add`: fills a pool."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from curriculum_api import limits
from curriculum_api.errors import AlreadyExistsError, InvalidRequestError, NotFoundError
from curriculum_api.v1.operator_service_pb2 import GetRunRequest
from curriculum_operator.configuration import duration
from curriculum_operator.loading import (
    InterruptedLoadError,
    Loaded,
    Sender,
    Survey,
    prompts,
    survey,
)
from curriculum_operator.progress import progress
from curriculum_operator.records import FieldNames
from curriculum_operator.session import Failure, Interrupted, Session, as_usage, with_session
from curriculum_operator.sources import Source
from curriculum_operator.sources.registry import is_generated, opened


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("source_name", metavar="SOURCE")
@click.option("--domain", help="The domain of records that name none.")
@click.option("--id-field", metavar="NAME", help="Holds the id. [prompt_id, else id]")
@click.option("--text-field", metavar="NAME", help="Holds the text. [text, else prompt]")
@click.option("--domain-field", metavar="NAME", help="Holds the domain. [domain]")
@click.option("--tags-field", metavar="NAME", help="Holds a list of tags. [tags]")
@click.option("--payload-field", metavar="NAME", help="Holds the payload. [payload]")
@click.option(
    "--feature-field",
    metavar="NAME",
    multiple=True,
    help="A number that becomes a feature. Repeatable.",
)
@click.option("--embedding-field", metavar="NAME", help="Holds an embedding. [embedding]")
@click.option(
    "--batch",
    type=click.IntRange(1, limits.MAX_ADD_PROMPTS),
    default=1000,
    show_default=True,
    help="Prompts per call.",
)
@click.option(
    "--patience",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long to keep trying while the server is away.",
)
@click.option("--dry-run", is_flag=True, help="Check the source and send nothing.")
@with_session
def add(session: Session, run_id: str, source_name: str, **options: Any) -> None:
    """Check all of SOURCE, then add its prompts to the pool of RUN.

    \b
    SOURCE is one of
      FILE.jsonl, FILE.jsonl.gz    one JSON object per line
      -                            the same from stdin
      FILE.parquet                 one record per row
      DIRECTORY                    a Hugging Face dataset written by save_to_disk;
                                   of a DatasetDict name a split: DIRECTORY/train
      reasoning-gym:TASK[,TASK]?size=500&seed=0&FIELD=VALUE
                                   generated; FIELD is one of the task's configuration

    A record's fields: prompt_id (or id), text (or prompt), domain, payload (an object for the
    verifier), tags (a list), features (an object of numbers) and embedding (a list of numbers, of
    one length within a run). Every other field is kept in the payload. A text may be a list of chat
    messages: their contents, joined by blank lines, are the text, and the list itself is kept in
    the payload as "messages".

    Tags, features and the embedding tell how hard a prompt may be before it is attempted: another
    model's pass rate is worth most. Any prompt may lack any of them. Where no prompt has a feature
    or an embedding, the texts themselves are compared.

    A record without an id gets one from its domain, text and payload, so repeating the command
    adds only what is missing. Exact repeats in a source are collapsed. When any record is bad,
    nothing is sent.
    """
    with as_usage("--patience"):
        patience = duration("patience", options["patience"]).ToTimedelta().total_seconds()
    names = _field_names(source_name, options)
    if not options["dry_run"]:
        # A run that is not there should show before a long source is read.
        stub = session.connection.stub
        session.connection.call(stub.GetRun, GetRunRequest(run_id=run_id))
    with opened(source_name) as source:
        with progress(session.err, "checking", None, f"{source.unit}s") as advance:
            surveyed = survey(source, names, advance)
        if options["dry_run"]:
            _show(session, run_id, surveyed, None)
            return
        total = surveyed.prompt_count
        with progress(session.err, "sending", total, "prompts") as advance:
            sender = Sender(session.connection, run_id, options["batch"], patience, advance)
            loaded = _sent(sender, source, names, surveyed)
    _show(session, run_id, surveyed, loaded)


def _sent(sender: Sender, source: Source, names: FieldNames, surveyed: Survey) -> Loaded:
    try:
        return sender.send(prompts(source, names, surveyed))
    except InterruptedLoadError as error:
        reached = f"{error.loaded.sent_count:,} of {surveyed.prompt_count:,} prompts were sent"
        advice = f"{error}\n{reached}{_how_to_go_on(error.why)}."
        raise (Failure if error.why else Interrupted)(advice) from error


def _how_to_go_on(why: Exception | None) -> str:
    if isinstance(why, AlreadyExistsError):
        return (
            ". What a pool holds of a prompt is fixed, tags, features and embedding included: "
            "other content needs another id, or a new run"
        )
    if isinstance(why, InvalidRequestError | NotFoundError):
        return ""  # it would fail again
    return "; the same command continues from there"


def _field_names(source_name: str, options: dict[str, Any]) -> FieldNames:
    names = FieldNames(
        id=options["id_field"],
        text=options["text_field"],
        domain=options["domain_field"],
        tags=options["tags_field"],
        payload=options["payload_field"],
        embedding=options["embedding_field"],
        features=tuple(options["feature_field"]),
        default_domain=options["domain"],
    )
    if is_generated(source_name) and names != FieldNames():
        raise click.UsageError(
            "A generated source has fixed fields, and its domains are its tasks: leave out "
            "--domain and the --…-field options."
        )
    return names


def _show(session: Session, run_id: str, surveyed: Survey, loaded: Loaded | None) -> None:
    document: dict[str, Any] = {
        "run_id": run_id,
        "dry_run": loaded is None,
        "record_count": surveyed.record_count,
        "collapsed_count": surveyed.collapsed_count,
        "prompt_count_by_domain": surveyed.domains,
    } | {f"with_{word}_count": count for word, count in surveyed.described.items()}
    done = dataclasses.asdict(loaded or Loaded())
    session.show(document | done, lambda: _summary(run_id, surveyed, loaded))


def _summary(run_id: str, surveyed: Survey, loaded: Loaded | None) -> str:
    collapsed = f"{surveyed.collapsed_count:,} repeats collapsed"
    of = surveyed.described
    described = (
        f"of the {surveyed.prompt_count:,}: {of['features']:,} with features, {of['tags']:,} with "
        f"tags, {of['embedding']:,} with an embedding"
    )
    if loaded is None:
        domains = len(surveyed.domains)
        return (
            f"nothing sent: {surveyed.prompt_count:,} good prompts in {domains:,} "
            f"domain{'s' if domains != 1 else ''}, {collapsed}\n{described}"
        )
    lines = [
        f"{loaded.added_count:,} added, {loaded.existing_count:,} already there, {collapsed}; "
        f"{run_id} has {loaded.pool_count:,} prompts"
    ]
    if loaded.retried_call_count and loaded.existing_count:
        plural = "s" if loaded.retried_call_count > 1 else ""
        lines.append(
            f"{loaded.retried_call_count:,} call{plural} repeated: what is counted as already "
            "there may be the first try's"
        )
    return "\n".join([*lines, described])
