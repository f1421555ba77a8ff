"""Exporting runs and importing them, through the calls: what comes out is what went in."""

from __future__ import annotations

import json
import threading

import pytest

from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2, stats_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_server.engine import transfer
from tests.server.driving import RunDriver

DAY_S = 24 * 3600


def pages(stubs, run_id):
    token = ""
    while True:
        page = stubs.operator.ExportRun(op.ExportRunRequest(run_id=run_id, page_token=token))
        yield list(page.parts)
        token = page.next_page_token
        if not token:
            return


def export(run):
    return [part for page in pages(run.stubs, run.run_id) for part in page]


def request(run_id, parts=(), *, commit=False, request_id="import"):
    return op.ImportRunRequest(run_id=run_id, request_id=request_id, parts=parts, commit=commit)


def import_to(stubs, run_id, parts, **fields):
    """Each part by a call of its own, then the commit."""
    for part in parts:
        answer = stubs.operator.ImportRun(request(run_id, [part], **fields))
        assert not answer.HasField("run")
    stubs.operator.ImportRun(request(run_id, commit=True, **fields))
    return RunDriver(stubs, run_id)


def train(run, steps, count=8):
    """Steps with names, graded rewards, tokens and a channel, all following from the prompt."""
    batches = []
    for step in steps:
        batch = run.next(f"step-{step}", count=count, step=step)
        groups = {
            p.slot: [
                ((int(p.prompt.prompt_id[1:]) * 3 + step + i) % 7) / 3 - 1
                for i in range(p.attempt_count)
            ]
            for p in batch.prompts
        }
        rows = sum(map(len, groups.values()))
        run.report(
            batch,
            groups,
            request_id=f"trained-{step}",
            token_counts=[100 + i for i in range(rows)],
            channels={"entropy": batch_pb2.ChannelValues(values=[i % 4 for i in range(rows)])},
        )
        batches.append([p.SerializeToString() for p in batch.prompts])
    return batches


def ledger(run):
    """All that is known of a run, without its name and when it was made."""
    shown = run.get()
    shown.run_id = ""
    shown.ClearField("create_time")
    windows = run.stats().windows
    middle = windows[(len(windows) - 1) // 2].last_policy_step
    boundary = run.stubs.operator.CompareBoundary(
        op.CompareBoundaryRequest(
            run_id=run.run_id,
            before=stats_pb2.StepRange(first_policy_step=0, last_policy_step=middle),
            after=stats_pb2.StepRange(first_policy_step=middle + 1, last_policy_step=99),
        )
    )
    states = run.list()
    prompts = [run.prompt(state.prompt_id) for state in states.prompts]
    return shown, run.stats(), states, boundary, prompts


@pytest.fixture
def trained(open_run):
    """A run with merged windows, checkpoints, a rollback behind it, and batches that were open."""
    run = open_run(
        60,
        domains=3,
        reward_min=-1.0,
        pass_threshold=0.3,
        window_steps=2,
        seed=5,
        selection={"group_size": 4},
        channels=[run_pb2.Channel(name="entropy", min_value=0, max_value=3)],
    )
    train(run, range(6))
    run.checkpoint("first", 5)
    train(run, range(6, 9))
    run.rollback("first")
    run.publish(5, "/weights/5")
    train(run, range(6, 24))
    run.add([prompt_pb2.Prompt(prompt_id="p777", domain="new", text="?", features={"f": 0.5})])
    ahead = run.next("step-24", count=8, step=24)
    run.checkpoint("second", 23)
    run.release(ahead)
    train(run, range(25, 28))
    return run


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces and pages so small that a small run has many."""
    monkeypatch.setattr(transfer, "PIECE_BYTES", 64)
    monkeypatch.setattr(transfer, "PAGE_BYTES", 512)


@pytest.mark.parametrize("into_another_store", [False, True])
def test_an_imported_run_is_the_exported_one(
    trained, start_server, tmp_path, into_another_store, stubs
):
    where = start_server(data_dir=str(tmp_path)).stubs if into_another_store else stubs
    other = import_to(where, f"{trained.run_id}-copy", export(trained))
    assert ledger(other) == ledger(trained)
    # It goes on alike: the same batches, again and again.
    assert train(other, range(28, 34)) == train(trained, range(28, 34))
    assert ledger(other) == ledger(trained)
    # A checkpoint leads back, also to the batch that was fetched ahead of it.
    for name in ("second", "first"):
        assert other.rollback(name) == trained.rollback(name)
        assert ledger(other) == ledger(trained)
        assert train(other, range(24, 26)) == train(trained, range(24, 26))


def test_pages_and_pieces_of_any_size_give_the_same_run(trained, small_pieces, stubs):
    found = list(pages(stubs, trained.run_id))
    assert len(found) > 20
    sent = [part for page in found for part in page]
    assert max(len(part.content) for part in sent if part.name != "run.json") == 64
    # In any order.
    other = import_to(stubs, f"{trained.run_id}-copy", reversed(sent))
    assert ledger(other) == ledger(trained)


def test_an_empty_run_can_be_moved(open_run):
    run = open_run(0)
    other = import_to(run.stubs, f"{run.run_id}-copy", export(run))
    assert ledger(other) == ledger(run)
    run.stubs.add_prompts(other.run_id, 3)
    assert len(other.next(count=3).prompts) == 3


def test_leases_and_records_stay_behind(open_run):
    run = open_run(10)
    batch = run.next("ahead", count=4)
    other = import_to(run.stubs, f"{run.run_id}-copy", export(run))
    assert (run.stats().leased_prompt_count, other.stats().leased_prompt_count) == (4, 0)
    assert len(other.next("ahead", count=10).prompts) == 10
    assert not [part.name for part in export(run) if batch.batch_id in part.name]


def test_what_is_reported_during_an_export_is_in_it_wholly_or_not_at_all(
    open_run, small_pieces, start_server, tmp_path
):
    run = open_run(200, window_steps=1000, selection={"group_size": 8})
    train_plain(run, range(1, 4))
    before = run.stats()
    stop, failures = threading.Event(), []

    def keep_reporting():
        try:
            for step in range(4, 900):
                if stop.is_set():
                    return
                train_plain(run, [step])
        except Exception as error:
            failures.append(error)

    trainer = threading.Thread(target=keep_reporting)
    trainer.start()
    found = []
    for page in pages(run.stubs, run.run_id):
        found += page
    stop.set()
    trainer.join()
    after = run.stats()
    other = import_to(start_server(data_dir=str(tmp_path)).stubs, run.run_id, found)
    assert not failures
    assert before.attempt_count <= other.stats().attempt_count <= after.attempt_count
    assert after.attempt_count > before.attempt_count
    for state in other.list().prompts:
        assert state.pass_count * 2 == state.attempt_count  # as in every group


def train_plain(run, steps):
    """Groups that pass by half, under names that nobody else takes."""
    for step in steps:
        batch = run.next(f"plain-{step}", count=8, step=step)
        run.report(batch, {p.slot: [1.0, 0.0] * 4 for p in batch.prompts})


def test_an_export_whose_run_changes_its_layout_is_told_to_begin_anew(
    trained, small_pieces, refused
):
    first = trained.stubs.operator.ExportRun(op.ExportRunRequest(run_id=trained.run_id))
    trained.update(window_steps=7)
    again = op.ExportRunRequest(run_id=trained.run_id, page_token=first.next_page_token)
    answer = refused(trained.stubs.operator.ExportRun, again)
    assert (answer.status, answer.error) == ("ABORTED", "ConflictError")
    assert "begin anew" in answer.details


def test_an_import_is_there_only_once_it_is_committed(trained, raw, refused):
    name = f"{trained.run_id}-copy"
    operator = trained.stubs.operator
    operator.ImportRun(request(name, export(trained)))
    assert refused(operator.GetRun, op.GetRunRequest(run_id=name)).status == "NOT_FOUND"
    assert name not in {run.run_id for run in operator.ListRuns(op.ListRunsRequest()).runs}
    answer = refused(operator.CreateRun, op.CreateRunRequest(run_id=name))
    assert answer.status == "FAILED_PRECONDITION"
    ttls = {key: raw.ttl(key) for key in raw.scan_iter(match=f"cur:{{{name}}}:*", count=10_000)}
    assert len(ttls) > 50
    assert all(0 < ttl <= DAY_S for ttl in ttls.values()), ttls
    operator.ImportRun(request(name, commit=True))
    assert ledger(RunDriver(trained.stubs, name)) == ledger(trained)
    left = list(raw.scan_iter(match=f"cur:{{{name}}}:*", count=10_000))
    assert f"cur:{{{name}}}:import".encode() not in left
    assert all(raw.ttl(key) == -1 for key in left)


def test_every_call_of_an_import_may_be_repeated(trained):
    name = f"{trained.run_id}-copy"
    operator, sent = trained.stubs.operator, export(trained)
    for _ in range(2):
        operator.ImportRun(request(name, sent))
    made = [operator.ImportRun(request(name, commit=True)).run for _ in range(3)]
    assert made[0] == made[1] == made[2]
    assert operator.ImportRun(request(name, sent)).run == made[0]
    assert ledger(RunDriver(trained.stubs, name)) == ledger(trained)


def test_an_interrupted_import_is_taken_up_again_by_a_repeat(trained):
    name = f"{trained.run_id}-copy"
    operator, sent = trained.stubs.operator, export(trained)
    operator.ImportRun(request(name, sent[: len(sent) // 2]))
    other = import_to(trained.stubs, name, sent)
    assert ledger(other) == ledger(trained)


def test_a_name_that_is_taken_is_refused(trained, open_run, refused):
    operator, sent = trained.stubs.operator, export(trained)
    other = open_run(3)
    for fields in ({"parts": sent}, {"commit": True}):
        answer = refused(operator.ImportRun, request(other.run_id, **fields))
        assert (answer.status, "exists; import under another" in answer.details) == (
            "ALREADY_EXISTS", True)  # fmt: skip
    assert other.get().prompt_count == 3
    name = f"{trained.run_id}-copy"
    operator.ImportRun(request(name, sent[:3]))
    answer = refused(operator.ImportRun, request(name, sent, request_id="another"))
    assert (answer.status, "taken by another import" in answer.details) == ("ALREADY_EXISTS", True)
    # A deletion ends the import.
    operator.DeleteRun(op.DeleteRunRequest(run_id=name))
    assert ledger(import_to(trained.stubs, name, sent, request_id="another")) == ledger(trained)


def test_a_deleted_run_comes_back_by_an_import(trained, stubs, start_server):
    bystander = trained.through(start_server().stubs)
    sent, before = export(trained), ledger(trained)
    assert ledger(bystander) == before
    trained.add([prompt_pb2.Prompt(prompt_id="p888", domain="new")])
    trained.delete()
    again = import_to(stubs, trained.run_id, sent)
    assert ledger(again) == before
    assert ledger(bystander) == before


def damaged(parts, name, change):
    """The parts with one changed; None leaves it out."""
    for part in parts:
        if part.name != name:
            yield part
        elif (content := change(part.content)) is not None:
            yield run_pb2.RunPart(name=name, content=content)


def reworded(**changes):
    """Changes fields of the document, or beside it."""

    def change(content):
        values = json.loads(content)
        for name, value in changes.items():
            inner = values["document"] if name in values["document"] else values
            inner[name] = value
        return json.dumps(values).encode()

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("run.json", lambda _: None, "parts.name='run.json': is missing"),
        ("prompts/0/catalog/0", lambda _: None, "'prompts/0/catalog/0': is missing"),
        ("windows/0/passes/0", lambda _: None, "'windows/0/passes/0': is missing"),
        ("windows/0/served/0", lambda _: None, "'windows/0/served/0': is missing"),
        ("prompts/0/catalog/0", lambda c: c[:-1], "cannot be read"),
        ("prompts/0/catalog/0", lambda c: c.replace(b'"p0"', b'"q0"'), "or is another one"),
        ("prompts/0/payload/0", lambda c: c[:-3], "p59"),
        ("windows/0/attempts/0", lambda c: bytes(len(c)), "must be at most 0, the attempts"),
        ("windows/0/tokens/0", lambda c: c + b"x", "must be a multiple of 4"),
        ("windows/0/tokens/0", lambda c: bytes(4 * 62), "must be a multiple of 4 up to 244"),
        ("windows/0/served/0", lambda c: c + b"x", "must be a multiple of 8"),
        ("windows/0/served/0", lambda c: b"\xff" * 8, "names prompt 4294967295 of 61"),
        ("run.json", reworded(prompt_count=62), "must be 62"),
        ("run.json", reworded(chunk_count=3), "'prompts/2/catalog/0': is missing"),
        ("run.json", reworded(windows=[]), "has no window"),
        ("run.json", reworded(groups={"0": [1, 2]}), "groups[0]=(1, 2)"),
        ("run.json", reworded(groups={"99": [1, 1]}), "groups[99]=(1, 1)"),
        ("run.json", reworded(policy_step=-1), "has a policy_step outside"),
        ("run.json", reworded(timeline="x"), "timeline='x'"),
    ],
)
def test_a_damaged_or_missing_part_makes_no_run(trained, refused, name, change, said):
    operator, copy = trained.stubs.operator, f"{trained.run_id}-copy"
    sent = list(damaged(export(trained), name, change))
    operator.ImportRun(request(copy, sent))
    answer = refused(operator.ImportRun, request(copy, commit=True))
    assert answer.status == "INVALID_ARGUMENT"
    assert said in answer.details
    assert refused(operator.GetRun, op.GetRunRequest(run_id=copy)).status == "NOT_FOUND"
    # The true parts mend it, if the length of none was changed for good.
    if not said.startswith("must be a multiple"):
        assert ledger(import_to(trained.stubs, copy, export(trained))) == ledger(trained)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("", b"", "must be the name of an exported part"),
        ("windows/0/meta/0", b"", "must be the name of an exported part"),
        ("windows/0/attempts", b"", "must be the name of an exported part"),
        ("windows/-1/attempts/0", b"", "must be the name of an exported part"),
        ("prompts/0/attempts/0", b"", "must be the name of an exported part"),
        ("open/0/attempts/0", b"", "must be the name of an exported part"),
        ("../meta", b"", "must be the name of an exported part"),
        ("windows/0/attempts/9999999999", b"x", "must be a smaller piece"),
        ("run.json", b"", "is damaged"),
        ("run.json", b"[]", "is damaged"),
        ("run.json", b'{"format":1}', "is damaged"),
        ("run.json", b'{"format":2}', "format=2: must be 1"),
    ],
)
def test_a_part_that_is_none_is_refused_by_name(stubs, open_run, refused, name, content, said):
    run_id = f"{open_run(0).run_id}-copy"
    part = run_pb2.RunPart(name=name, content=content)
    answer = refused(stubs.operator.ImportRun, request(run_id, [part]))
    assert (answer.status, said in answer.details) == ("INVALID_ARGUMENT", True), answer


def test_a_run_of_a_newer_server_is_refused(trained, refused):
    sent = list(damaged(export(trained), "run.json", reworded(schema=99)))
    answer = refused(trained.stubs.operator.ImportRun, request("copy-of-newer", sent))
    assert (answer.status, "schema=99" in answer.details) == ("FAILED_PRECONDITION", True)


def test_a_part_that_belongs_nowhere_is_refused(trained, refused):
    operator, copy = trained.stubs.operator, f"{trained.run_id}-copy"
    stray = run_pb2.RunPart(name="windows/999/attempts/0", content=b"\0\0\0\1")
    operator.ImportRun(request(copy, [*export(trained), stray]))
    answer = refused(operator.ImportRun, request(copy, commit=True))
    assert "'windows/999/attempts/0': is no part of this run" in answer.details


@pytest.mark.parametrize("token", ["x", "MS4y", "MTox"])
def test_a_page_token_that_is_none_is_refused(trained, refused, token):
    ask = op.ExportRunRequest(run_id=trained.run_id, page_token=token)
    assert refused(trained.stubs.operator.ExportRun, ask).status == "INVALID_ARGUMENT"


def test_a_run_that_is_not_there_cannot_be_exported(stubs, refused):
    ask = op.ExportRunRequest(run_id="never-made")
    assert refused(stubs.operator.ExportRun, ask).status == "NOT_FOUND"
