"""CurriculumDataset in PyTorch's DataLoader, torchdata's and Hugging Face's datasets."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
from torch.utils.data import DataLoader, default_collate

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_api.v1.stats_pb2 import RunStats
from curriculum_client import Feed, ServedPrompt, TrainerClient
from curriculum_client.adapters.torch import CurriculumDataset, collate
from curriculum_client.testing import FakeCurriculum

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch and datasets

PROMPTS, ATTEMPTS = 4, 2

Rows = list[dict[str, Any]]


@pytest.fixture
def run_id(new_run: Callable[..., str]) -> str:
    return new_run(200, selection={"group_size": ATTEMPTS, "reach_attempt_factor": 1})


@pytest.fixture
def stats(stats: Callable[[str], RunStats], run_id: str) -> Callable[[], RunStats]:
    return lambda: stats(run_id)


@pytest.fixture
def dataset(server: Any, run_id: str) -> Iterator[Callable[..., CurriculumDataset]]:
    """A process's dataset of the run; of another rank, or after a restart, where called again."""
    feeds: list[Feed] = []

    def make(*, whole_batches: bool = False, **options: Any) -> CurriculumDataset:
        reporter = f"process-{len(feeds)}"
        client = TrainerClient(server.address, run_id=run_id, reporter=reporter)
        feeds.append(Feed(client, PROMPTS, **options))
        return CurriculumDataset(feeds[-1], whole_batches=whole_batches)

    yield make
    for feed in feeds:
        feed.close(ranks_ended=True)
        feed.client.close()


def take(rows: Iterator[dict[str, Any]], count: int = PROMPTS) -> Rows:
    return list(islice(rows, count))


def ids(rows: Rows) -> list[str]:
    return [row["prompt_id"] for row in rows]


def score(dataset: CurriculumDataset, rows: Rows, step: int) -> None:
    """A pass and a fail of each row."""
    leases = [row["lease"] for row in rows for _ in range(ATTEMPTS)]
    dataset.report(leases, [1.0, 0.0] * len(rows), policy_step=step)


def test_a_loader_gives_rows_and_their_rewards_are_counted(dataset, stats) -> None:
    data = dataset()
    for step, batch in enumerate(islice(DataLoader(data, batch_size=2, collate_fn=collate), 4)):
        assert set(batch) == {
            *("prompt", "prompt_id", "domain", "payload", "attempt_count", "lease")
        }
        assert all(text.startswith("What is ") for text in batch["prompt"])
        answers = [2 * int(prompt_id[1:]) for prompt_id in batch["prompt_id"]]
        assert [payload["answer"] for payload in batch["payload"]] == answers
        assert batch["attempt_count"] == [ATTEMPTS] * 2
        score(data, [{"lease": lease} for lease in batch["lease"]], step)
    seen = stats()
    assert (seen.attempt_count, seen.mixed_group_count) == (16, 8)
    assert data.policy_step == 3


def test_whole_batches_come_as_they_were_served(dataset) -> None:
    batches = DataLoader(dataset(whole_batches=True), batch_size=None)
    [first, second] = islice(batches, 2)
    rows = take(iter(dataset()), 2 * PROMPTS)
    assert first["lease"] + second["lease"] == [row["lease"] for row in rows]


def test_payloads_of_different_keys_are_collated() -> None:
    pool = [
        {"text": "1 + 1", "payload": {"answer": 2}},
        {"text": "say yes", "payload": {"pattern": "^yes"}},
    ]
    with FakeCurriculum(pool, group_size=ATTEMPTS) as fake, fake.client() as client:
        rows = take(iter(CurriculumDataset(Feed(client, 2))), 2)
    with pytest.raises((KeyError, RuntimeError)):
        default_collate(rows)
    payloads = {row["prompt"]: row["payload"] for row in rows}
    columns = collate(rows)
    assert dict(zip(columns["prompt"], columns["payload"], strict=True)) == payloads
    assert payloads == {prompt["text"]: prompt["payload"] for prompt in pool}


def as_messages(served: ServedPrompt) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": served.text}], "lease": served.lease}


def test_rows_are_what_one_makes_of_them(dataset) -> None:
    data = CurriculumDataset(dataset().feed, to_row=as_messages)
    [row] = take(iter(data), 1)
    assert row["messages"][0]["content"].startswith("What is ")


def test_batches_are_asked_for_at_the_step_that_was_set_or_reported() -> None:
    pool = [f"What is {i} + {i}?" for i in range(50)]
    with FakeCurriculum(pool, group_size=ATTEMPTS) as fake, fake.client() as client:
        data = CurriculumDataset(Feed(client, PROMPTS, prefetch=False))
        data.policy_step = 7
        rows = iter(data)
        score(data, take(rows), 9)
        take(rows, 1)
        assert [batch.policy_step for batch in fake.batches] == [7, 9]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_are_refused_however_they_are_started(dataset, stats, method: str) -> None:
    data = dataset()
    data.feed.client.checkpoint("connected", 0)
    loader = DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context=method)
    with pytest.raises(InvalidRequestError, match=r"num_workers=1: must be 0: each worker would"):
        next(iter(loader))
    assert stats().leased_prompt_count == 0
    assert take(iter(data))


def test_a_loader_that_runs_ahead_gets_each_prompt_once_and_all_counts(dataset, stats) -> None:
    data = dataset()
    rows = iter(data)
    ahead = [take(rows) for _ in range(3)]
    assert stats().leased_prompt_count == 3 * PROMPTS
    for step in range(5):
        score(data, ahead[step], step)
        ahead.append(take(rows))
    served = [row for batch in ahead for row in batch]
    assert len(set(ids(served))) == len({row["lease"] for row in served}) == 8 * PROMPTS
    assert stats().attempt_count == 5 * PROMPTS * ATTEMPTS


def test_iterators_share_one_position(dataset) -> None:
    data = dataset()
    leases = [row["lease"] for row in take(iter(data), 2) + take(iter(data), 2)]
    assert leases == [row["lease"] for row in take(iter(dataset()))]


def test_ranks_that_go_through_everything_are_given_the_same(dataset, stats) -> None:
    ranks = [dataset(reporter_count=2) for _ in range(2)]
    streams = [iter(rank) for rank in ranks]
    for step in range(4):
        first, second = (take(stream) for stream in streams)
        assert first == second
        score(ranks[0], first[:1], step)  # a rank may score fewer, as long as each is scored once
        score(ranks[0], first[1:2], step)
        score(ranks[1], second[2:], step)
    assert stats().attempt_count == 4 * PROMPTS * ATTEMPTS
    assert stats().group_count == stats().mixed_group_count == 4 * PROMPTS


def test_ranks_may_share_each_batch(dataset, stats) -> None:
    ranks = [dataset(rank=rank, world_size=2, whole_batches=True) for rank in range(2)]
    loaders = [iter(DataLoader(rank, batch_size=None)) for rank in ranks]
    seen: list[str] = []
    for step in range(4):
        for rank, loader in zip(ranks, loaders, strict=True):
            share = next(loader)
            assert len(share["lease"]) == PROMPTS // 2
            score(rank, [{"lease": lease} for lease in share["lease"]], step)
            seen += share["lease"]
    assert len(set(seen)) == 4 * PROMPTS
    assert stats().group_count == 4 * PROMPTS


def test_a_copy_goes_on_where_the_original_was(dataset) -> None:
    data = dataset()
    rows = iter(data)
    take(rows, 3)
    copy = pickle.loads(pickle.dumps(data))
    assert take(iter(copy), 6) == take(rows, 6)
    copy.feed.client.close()


def test_a_resumed_training_gets_what_was_fetched_ahead_and_what_followed(dataset, stats) -> None:
    first = dataset()
    rows = iter(first)
    ahead, saved = [take(rows), take(rows)], ""
    for step in range(5):
        score(first, ahead[step], step)
        ahead.append(take(rows))
        if step == 1:
            saved = json.dumps(first.state_dict())
            first.feed.client.checkpoint("step-2", 2)
    second = dataset()
    second.load_state_dict(json.loads(saved))
    second.feed.client.rollback("step-2")
    assert stats().attempt_count == 2 * PROMPTS * ATTEMPTS
    again = iter(second)
    ahead_again = [take(again), take(again)]
    for step in range(2, 5):
        score(second, ahead_again[step - 2], step)
        ahead_again.append(take(again))
    assert [ids(batch) for batch in ahead_again] == [ids(batch) for batch in ahead[2:]]
    assert stats().attempt_count == 5 * PROMPTS * ATTEMPTS


def test_what_was_left_of_a_batch_at_a_checkpoint_is_free_when_training_resumes(
    dataset, stats
) -> None:
    first = dataset(prefetch=False)
    rows = iter(first)
    score(first, take(rows, 1), 0)
    saved = first.state_dict()
    first.feed.client.checkpoint("step-1", 1)
    following = take(rows, 2 * PROMPTS)[PROMPTS - 1 :]
    second = dataset()
    second.load_state_dict(saved)
    second.feed.client.rollback("step-1")
    assert stats().leased_prompt_count == 0
    assert stats().attempt_count == ATTEMPTS
    assert following
    assert take(iter(second))


def doubled(row: dict[str, Any]) -> dict[str, Any]:
    return {"double": 2 * row["payload"]["answer"]}


def test_hugging_faces_dataset_is_the_same_stream(dataset, stats) -> None:
    data = dataset()
    rows = iter(data.huggingface().map(doubled).select_columns(["lease", "double", "payload"]))
    for step in range(3):
        batch = take(rows)
        assert all(row["double"] == 2 * row["payload"]["answer"] for row in batch)
        score(data, batch, step)
    assert stats().group_count == 3 * PROMPTS


def test_hugging_faces_dataset_pickles_and_has_a_fingerprint(dataset) -> None:
    from datasets.fingerprint import Hasher

    data = dataset()
    take(iter(data), 2)
    huggingface = data.huggingface()
    assert Hasher.hash(huggingface)
    copy = pickle.loads(pickle.dumps(huggingface))
    expected = ids(take(iter(data), 6))
    assert ids(take(iter(copy), 6)) == expected


def test_hugging_faces_dataset_may_be_split_by_node(dataset, stats) -> None:
    from datasets.distributed import split_dataset_by_node

    ranks = [dataset(reporter_count=2) for _ in range(2)]
    streams = [
        iter(split_dataset_by_node(data.huggingface(), rank=rank, world_size=2))
        for rank, data in enumerate(ranks)
    ]
    seen: list[str] = []
    for step in range(3):
        for data, stream in zip(ranks, streams, strict=True):
            rows = take(stream, PROMPTS // 2)
            score(data, rows, step)
            seen += [row["lease"] for row in rows]
    assert len(set(seen)) == 3 * PROMPTS
    assert stats().group_count == 3 * PROMPTS


def test_workers_over_hugging_faces_dataset_are_refused(dataset, stats) -> None:
    loader = DataLoader(dataset().huggingface(), batch_size=2, num_workers=1)
    with pytest.raises(InvalidRequestError, match="num_workers=1: must be 0"):
        next(iter(loader))
    assert stats().leased_prompt_count == 0


def test_a_pool_that_is_all_in_the_loaders_hands_ends_with_the_reason(
    dataset, stubs, new_run, monkeypatch
) -> None:
    monkeypatch.setattr("curriculum_client._feed.EMPTY_POOL_WAIT_S", 0.0)
    small = new_run(PROMPTS + 1, selection={"group_size": ATTEMPTS, "reach_attempt_factor": 1})
    target = dataset().feed.client._core.settings.target
    with TrainerClient(target, run_id=small) as client:
        loader = iter(DataLoader(CurriculumDataset(Feed(client, PROMPTS)), 4, collate_fn=collate))
        next(loader)
        with pytest.raises(StateError, match=r"nothing to serve for 0 s, with 2 batches"):
            next(loader)


@pytest.mark.adapter
def test_torchdatas_loader_saves_and_loads_the_position(dataset, stats) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def train(data: CurriculumDataset, loader: Any, steps: range) -> list[list[str]]:
        nonlocal saved
        served = []
        for step, batch in zip(steps, loader, strict=False):
            score(data, [{"lease": lease} for lease in batch["lease"]], step)
            served.append(batch["prompt_id"])
            if step == 1:
                saved = pickle.dumps(loader.state_dict())
                data.feed.client.checkpoint("step-2", 2)
        return served

    saved = b""
    first = dataset()
    options: dict[str, Any] = {"batch_size": PROMPTS, "collate_fn": collate}
    served = train(first, StatefulDataLoader(first, **options), range(5))
    assert stats().attempt_count == 5 * PROMPTS * ATTEMPTS
    second = dataset()
    loader = StatefulDataLoader(second, **options)
    loader.load_state_dict(pickle.loads(saved))
    second.feed.client.rollback("step-2")
    assert train(second, loader, range(2, 5)) == served[2:]
    assert stats().attempt_count == 5 * PROMPTS * ATTEMPTS
