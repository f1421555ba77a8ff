"""Attempts that are reported one by one, by whoever has their leases."""

from __future__ import annotations

import inspect
import json
import pickle

import grpc
import pytest

from curriculum_client import (
    ConflictError,
    InvalidRequestError,
    StateError,
    StoreUnavailableError,
    TrainerClient,
)
from curriculum_client.testing import FakeCurriculum

REFUSED = (grpc.StatusCode.FAILED_PRECONDITION, "outcomes.slots=0: it is closed")


async def report(client, *arguments, **options):
    """Of either client."""
    receipt = client.report_attempts(*arguments, **options)
    return await receipt if inspect.isawaitable(receipt) else receipt


def sent(service):
    """What reports said: batch, step, and each attempt's slot and reward."""
    return [
        (r.batch_id, r.policy_step, list(zip(r.outcomes.slots, r.outcomes.rewards, strict=True)))
        for r in service.requests("ReportOutcomes")
    ]


async def test_rows_of_several_batches_and_steps_are_sorted_out(connect, service):
    async with connect() as client:
        first, second = [await client.next_batch(2, policy_step=step) for step in (3, 4)]
        a, b, c = first[0].lease, first[1].lease, second[0].lease
        receipt = await report(
            client,
            [b, c, a, c, b],
            [1.0, 0.5, 0.25, 0.0, 0.75],
            policy_step=[3, 4, 3, 5, 3],
        )
    assert sent(service) == [
        ("default-0", 3, [(0, 0.25), (1, 1.0), (1, 0.75)]),
        ("default-1", 4, [(0, 0.5)]),
        ("default-1", 5, [(0, 0.0)]),
    ]
    assert (receipt.attempt_count, receipt.pass_count, receipt.duplicate) == (5, 1, False)


async def test_a_lease_survives_json_and_pickling(connect, service):
    async with connect() as client:
        [served, _] = await client.next_batch(2, policy_step=0)
        [lease] = json.loads(json.dumps([pickle.loads(pickle.dumps(served)).lease]))
        await report(client, [lease], [1.0], policy_step=0)
    assert service.attempts == {("default-0", 0): 1}


async def test_columns_go_with_their_rows(connect, service):
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        await report(
            client,
            [batch[1].lease, batch[0].lease],
            [1.0, 0.0],
            policy_step=0,
            token_counts=[11, 10],
            channels={"style": [0.1, 0.2], "clarity": [3, 4]},
        )
    [outcomes] = [request.outcomes for request in service.requests("ReportOutcomes")]
    assert list(outcomes.slots) == [0, 1]
    assert list(outcomes.token_counts) == [10, 11]
    assert list(outcomes.channels["style"].values) == pytest.approx([0.2, 0.1])
    assert list(outcomes.channels["clarity"].values) == [4, 3]


async def test_rows_without_a_lease_or_a_value_are_passed_over(connect, service):
    async with connect() as client:
        [served, _] = await client.next_batch(2, policy_step=0)
        lease = served.lease
        receipt = await report(
            client,
            [None, "", lease, lease, lease, lease],
            [1.0, 1.0, None, 0.25, 0.5, 0.75],
            policy_step=0,
            token_counts=[1, 1, 1, None, 1, 1],
            channels={"style": [1, 1, 1, 1, None, 1]},
        )
        assert receipt.attempt_count == 1
        assert (await report(client, [None, ""], [1.0, 1.0], policy_step=0)).attempt_count == 0
        assert (await report(client, [lease], [None], policy_step=0)).attempt_count == 0
        assert (await report(client, [], [], policy_step=0)).attempt_count == 0
    assert sent(service) == [("default-0", 0, [(0, 0.75)])]


def array(values):
    return pytest.importorskip("numpy").array(values)


@pytest.mark.parametrize("make", [array, lambda values: iter(list(values)), tuple])
async def test_arrays_and_iterators_will_do(connect, service, make):
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        await report(
            client,
            [served.lease for served in batch],
            make([1.0, 0.0]),
            policy_step=make([7, 8]),
            token_counts=make([5, 6]),
        )
    assert sent(service) == [("default-0", 7, [(0, 1.0)]), ("default-0", 8, [(1, 0.0)])]


async def test_tensors_will_do(connect, service):
    torch = pytest.importorskip("torch")
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        leases = [served.lease for served in batch]
        await report(client, leases, torch.tensor([1.0, 0.0]), policy_step=torch.tensor([7, 7]))
        await report(client, leases, list(torch.tensor([0.5, 0.0])), policy_step=7)
    assert [attempts for _, _, attempts in sent(service)] == [
        [(0, 1.0), (1, 0.0)],
        [(0, 0.5), (1, 0.0)],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": [1.0]}, "rewards: has 1 values for 2 leases"),
        ({"rewards": [1.0, float("nan")]}, "rewards[1]=nan: must be finite"),
        ({"rewards": [1.0, "yes"]}, "rewards[1]='yes': could not convert"),
        ({"rewards": 1.0}, "rewards=1.0: must be a sequence"),
        ({"policy_step": [1]}, "policy_step: has 1 values for 2 leases"),
        ({"policy_step": [1, 1.5]}, "policy_step[1]=1.5: "),
        ({"policy_step": -1}, "policy_step=-1: must be in "),
        ({"policy_step": [1, -1]}, "policy_step=-1: must be in "),
        ({"token_counts": [1, 2, 3]}, "token_counts: has 3 values for 2 leases"),
        ({"token_counts": [1, -2]}, "token_counts[1]=-2: must be in "),
        ({"channels": {"style": [1]}}, "channels['style']: has 1 values for 2 leases"),
        ({"leases": ["0.0.default-0", "p1"]}, "leases: 'p1': must be the lease of a served prompt"),
        ({"leases": ["0.0.default-0", "0.1."]}, "leases: '0.1.': must be the lease of a served"),
        ({"leases": ["0.0.default-0", 1]}, "leases: 1: must be the lease of a served prompt"),
    ],
)
async def test_what_is_refused_names_the_column_and_nothing_is_sent(
    connect, service, changes, message
):
    async with connect() as client:
        batch = await client.next_batch(2, policy_step=0)
        columns = {
            "leases": [served.lease for served in batch],
            "rewards": [1.0, 0.0],
            "policy_step": 0,
            **changes,
        }
        with pytest.raises(InvalidRequestError) as caught:
            await report(client, **columns)
    assert str(caught.value).startswith(message)
    assert sent(service) == []


async def test_a_part_counts_once_whichever_client_reports_it(connect, service):
    async with connect() as first, connect(reporter="another") as second:
        [served, _] = await first.next_batch(2, policy_step=0)
        row = {"leases": [served.lease], "rewards": [1.0], "policy_step": 0}
        assert not (await report(first, **row, part="uid-1")).duplicate
        assert (await report(second, **row, part="uid-1")).duplicate
        assert not (await report(second, **row, part="uid-2")).duplicate
    assert service.attempts == {("default-0", 0): 2}


async def test_a_part_may_be_of_several_batches(connect, service):
    async with connect() as client:
        batches = [await client.next_batch(2, policy_step=0) for _ in range(2)]
        leases = [batch[0].lease for batch in batches]
        for duplicate in (False, True):
            receipt = await report(client, leases, [1.0, 1.0], policy_step=0, part=7)
            assert (receipt.attempt_count, receipt.duplicate) == (2, duplicate)
    assert service.attempts == {("default-0", 0): 1, ("default-1", 0): 1}


async def test_equal_rows_of_one_client_are_different_attempts(connect, service):
    async with connect() as client:
        [served, _] = await client.next_batch(2, policy_step=0)
        for _ in range(3):
            await report(client, [served.lease], [1.0], policy_step=0)
    assert service.attempts == {("default-0", 0): 3}


def test_equal_rows_of_two_processes_clients_are_different_attempts(monkeypatch):
    with FakeCurriculum(["1 + 1"], group_size=4) as fake:
        monkeypatch.setenv("CURRICULUM_RUN", fake.run_id)
        monkeypatch.setenv("CURRICULUM_SERVER", fake.target)
        with TrainerClient.from_environment() as one, TrainerClient.from_environment() as other:
            [served] = one.next_batch(1, policy_step=0)
            for client in (one, other, one, other):
                assert not client.report_attempts([served.lease], [1.0], policy_step=0).duplicate
        assert fake.rewards == {"p0": [1.0] * 4}


async def test_rows_are_kept_while_the_service_is_away(connect, service, away):
    async with connect(retry_s=0) as client:
        batches = [await client.next_batch(2, policy_step=0) for _ in range(2)]
        leases = [served.lease for batch in batches for served in batch]
        service.failures["ReportOutcomes"] += [away] * 2
        assert await report(client, leases, [1.0] * 4, policy_step=0) is None
        assert client.buffered_reports == 2
        assert service.attempts == {}
        assert (await client.flush()).attempt_count == 4
    assert set(service.attempts.values()) == {1}
    assert len(service.attempts) == 4


async def test_a_lost_answer_counts_once(connect, service, lost_answer):
    async with connect() as client:
        batches = [await client.next_batch(2, policy_step=0) for _ in range(2)]
        service.failures["ReportOutcomes"].append(lost_answer)
        await report(client, [batch[0].lease for batch in batches], [1.0] * 2, policy_step=0)
    assert service.attempts == {("default-0", 0): 1, ("default-1", 0): 1}


@pytest.mark.parametrize("refused", [0, 1, 2])
async def test_a_refused_batch_does_not_keep_the_others_back(connect, service, refused):
    async with connect() as client:
        batches = [await client.next_batch(2, policy_step=0) for _ in range(3)]
        leases = [batch[0].lease for batch in batches]
        service.failures["ReportOutcomes"] += [None] * refused + [REFUSED]
        with pytest.raises(StateError, match="it is closed"):
            await report(client, leases, [1.0] * 3, policy_step=0)
    expected = {(f"default-{number}", 0): 1 for number in range(3) if number != refused}
    assert service.attempts == expected


async def test_the_first_of_several_refusals_is_raised(connect, service):
    async with connect() as client:
        batches = [await client.next_batch(2, policy_step=0) for _ in range(2)]
        gone = (grpc.StatusCode.ABORTED, "timeline=0: is over")
        service.failures["ReportOutcomes"] += [gone, REFUSED]
        with pytest.raises(ConflictError, match="is over"):
            await report(client, [b[0].lease for b in batches], [1.0] * 2, policy_step=0)


async def test_leases_of_an_older_timeline_are_refused_and_newer_ones_count(connect, service):
    async with connect() as client:
        await client.checkpoint("start", 0)
        [old, _] = await client.next_batch(2, policy_step=0)
        await client.rollback("start")
        [new, _] = await client.next_batch(2, policy_step=0)
        assert old.lease != new.lease
        with pytest.raises(ConflictError, match="timeline=0: is over"):
            await report(client, [old.lease, new.lease], [1.0, 1.0], policy_step=0)
    assert service.attempts == {("default-1", 0): 1}


def test_a_prompt_of_a_fallback_has_no_lease():
    options = {"on_unavailable": "uniform", "retry_s": 0, "max_buffered_reports": 0}
    with FakeCurriculum(["1 + 1", "2 + 2"], group_size=2) as fake, fake.client(**options) as client:
        client.next_batch(2, policy_step=0)
        fake.go_away()
        leases = [served.lease for served in client.next_batch(2, policy_step=1)]
        assert leases == ["", ""]
        assert client.report_attempts(leases, [1.0, 1.0], policy_step=1).attempt_count == 0


@pytest.mark.parametrize(
    "lease",
    [
        "0.-1.default-0",
        "-1.0.default-0",
        "0.4096.default-0",
        "4294967296.0.default-0",
        " 0.0.default-0",
        "0_0.0.default-0",
        ["0.0.default-0"],
    ],
)
def test_what_was_never_a_lease_is_refused(fake, make_client, lease):
    client = make_client()
    client.next_batch(1, policy_step=0)
    with pytest.raises(InvalidRequestError, match="must be the lease of a served prompt"):
        client.report_attempts([lease], [1.0], policy_step=0)


def test_a_part_may_have_rows_of_several_steps(fake, make_client):
    client = make_client()
    [served] = client.next_batch(1, policy_step=0)
    for _ in range(2):
        client.report_attempts([served.lease] * 2, [1.0, 0.0], policy_step=[0, 1], part="uid")
    assert fake.attempts[served.prompt_id] == 2


def test_a_step_may_be_a_scalar_of_numpy(fake, make_client):
    numpy, client = pytest.importorskip("numpy"), make_client()
    [served] = client.next_batch(1, policy_step=0)
    client.report_attempts([served.lease], [1.0], policy_step=numpy.int64(3))
    assert fake.attempts[served.prompt_id] == 1


def test_a_report_of_two_batches_of_which_one_could_not_be_kept_may_be_repeated(
    fake, make_client, monkeypatch
):
    client = make_client(max_buffered_reports=0)
    leases = [client.next_batch(1, policy_step=0)[0].lease for _ in range(2)]
    send, sent = TrainerClient._perform, []

    def fails_at_the_second(self, step):
        sent.append(step)
        if len(sent) == 2:
            fake.fail_next(method="ReportOutcomes")
        return send(self, step)

    monkeypatch.setattr(TrainerClient, "_perform", fails_at_the_second)
    with pytest.raises(StoreUnavailableError):
        client.report_attempts(leases, [1.0, 1.0], policy_step=0)
    client.report_attempts(leases, [1.0, 1.0], policy_step=0)
    assert sorted(fake.attempts.values()) == [1, 1]
