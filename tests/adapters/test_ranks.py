"""Data-parallel ranks as processes of their own, at one real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.adapters.rank_process import ROOT, RankProcess, Served

WORLD_SIZE, PROMPTS, ATTEMPTS = 4, 8, 4
STRADDLING = {"prompt_count": 3, "reporter_count": WORLD_SIZE, "prefetch": False}

Start = Callable[..., list[RankProcess]]
Rows = list[tuple[str, float]]
"""Of each attempt: lease and reward."""


@pytest.fixture
def start(server: Any) -> Iterator[Start]:
    started: list[RankProcess] = []

    def start(run_id: str, *, shares: bool = False, **feed: Any) -> list[RankProcess]:
        ranks = []
        for rank in range(WORLD_SIZE):
            share = {"rank": rank, "world_size": WORLD_SIZE} if shares else {}
            ranks.append(RankProcess(server.address, run_id, rank, **feed, **share))
            started.append(ranks[-1])
        return ranks

    yield start
    for rank in started:
        rank.kill()


@pytest.fixture
def run_of(new_run: Callable[..., str]) -> Callable[..., str]:
    """A run of such a pool."""

    def make(prompt_count: int = 200, lease_ttl_s: int = 3600, **selection: Any) -> str:
        chosen = {"group_size": ATTEMPTS, "reach_attempt_factor": 1, **selection}
        return new_run(prompt_count, selection=chosen, lease_ttl=Duration(seconds=lease_ttl_s))

    return make


def all_do(ranks: Sequence[RankProcess], method: str, *args: Any) -> list[Any]:
    """At the same time; what each gave."""
    for rank in ranks:
        rank.tell(method, *args)
    return [rank.answer() for rank in ranks]


def attempts(batch: Served, rewards: Sequence[float] = (1, 0)) -> Rows:
    """Of each prompt, with rewards that repeat."""
    return [
        (lease, float(rewards[k % len(rewards)])) for _, lease, count in batch for k in range(count)
    ]


def all_report(
    ranks: Sequence[RankProcess], rows: Sequence[Rows], step: int, part: str | None = None
) -> int:
    """Each its own rows, at the same time; how many were counted."""
    for rank, own in zip(ranks, rows, strict=True):
        rank.tell("report", [lease for lease, _ in own], [reward for _, reward in own], step, part)
    return sum(rank.answer() for rank in ranks)


def cut(rows: Rows) -> list[Rows]:
    """Into equal parts, one after the other."""
    size = len(rows) // WORLD_SIZE
    return [rows[rank * size : (rank + 1) * size] for rank in range(WORLD_SIZE)]


def ids(batch: Served) -> list[str]:
    return [prompt_id for prompt_id, _, _ in batch]


def test_ranks_that_ask_by_one_name_at_once_get_one_batch(start, run_of, stats) -> None:
    run_id = run_of()
    ranks = start(run_id, prompt_count=PROMPTS)
    for step in range(5):
        batches = all_do(ranks, "ask", f"step-{step}", PROMPTS, step)
        assert len(batches[0]) == PROMPTS
        assert batches == [batches[0]] * WORLD_SIZE
        assert stats(run_id).leased_prompt_count == (step + 1) * PROMPTS


@pytest.mark.parametrize("prefetch", [True, False])
def test_ranks_that_never_meet_are_given_the_same_batches(
    start, run_of, stats, prefetch: bool
) -> None:
    run_id = run_of()
    ranks = start(run_id, prompt_count=PROMPTS, reporter_count=WORLD_SIZE, prefetch=prefetch)
    steps = 12
    for number, rank in enumerate(ranks):
        rank.tell("train", steps, number, WORLD_SIZE)
    batches = [rank.answer() for rank in ranks]
    assert batches == [batches[0]] * WORLD_SIZE
    assert len({lease for batch in batches[0] for _, lease, _ in batch}) == steps * PROMPTS
    seen = stats(run_id)
    assert seen.attempt_count == steps * PROMPTS * ATTEMPTS
    assert seen.group_count == seen.mixed_group_count == steps * PROMPTS


def test_a_rank_asks_ahead_when_it_has_reported_its_own_part(
    start, run_of, stats, wait_until
) -> None:
    run_id = run_of()
    ranks = start(run_id, prompt_count=PROMPTS, reporter_count=WORLD_SIZE)
    [batch, *_] = all_do(ranks, "next_batch")
    all_report(ranks[1:2], cut(attempts(batch))[1:2], 0)
    wait_until(lambda: stats(run_id).leased_prompt_count == PROMPTS - 2 + PROMPTS)


def test_parts_of_straddling_groups_add_up_and_repeated_ones_do_not(start, run_of, stats) -> None:
    run_id = run_of(group_size=8)
    ranks = start(run_id, **STRADDLING)
    for step in range(3):
        batch, *others = all_do(ranks, "next_batch")
        assert others == [batch] * (WORLD_SIZE - 1)
        # 6 of the 24 attempts are each rank's. What a group has of passes is one rank's alone.
        parts = cut(attempts(batch, [1, 1, 1, 1, 1, 1, 0, 0]))
        assert len({lease for lease, _ in parts[1]}) == 2
        assert all_report(ranks[1:], parts[1:], step) == 18
        assert stats(run_id).group_count == 3 * step + 2
        assert all_report(ranks[:1], parts[:1], step) == 6
        seen = stats(run_id)
        assert (seen.attempt_count, seen.pass_count) == (24 * (step + 1), 18 * (step + 1))
        assert seen.group_count == seen.mixed_group_count == 3 * (step + 1)
        assert seen.leased_prompt_count == 0


def test_equal_parts_of_one_group_are_told_apart_by_rank(start, run_of, stats) -> None:
    run_id = run_of(group_size=8)
    ranks = start(run_id, **STRADDLING)
    [batch, *_] = all_do(ranks, "next_batch")
    part = [(lease, reward) for _, lease, _ in batch for reward in (1.0, 0.0)]
    assert all_report(ranks, [part] * WORLD_SIZE, 0) == 24
    seen = stats(run_id)
    assert (seen.attempt_count, seen.group_count, seen.mixed_group_count) == (24, 3, 3)


def test_a_part_that_a_new_process_repeats_counts_once(start, run_of, stats) -> None:
    run_id = run_of(group_size=8)
    ranks = start(run_id, **STRADDLING)
    [batch, *_] = all_do(ranks, "next_batch")
    parts = cut(attempts(batch))
    for rank, part in enumerate(parts):
        all_report([ranks[rank]], [part], 0, part=f"rank-{rank}")
    ranks[2].kill()  # it may have crashed before it knew
    replacements = start(run_id, **STRADDLING)
    for rank, part in enumerate(parts):
        all_report([replacements[rank]], [part], 0, part=f"rank-{rank}")
    seen = stats(run_id)
    assert (seen.attempt_count, seen.group_count, seen.leased_prompt_count) == (24, 3, 0)


def test_a_killed_rank_loses_its_own_attempts_for_the_time_of_a_lease(
    start, run_of, stats, wait_until
) -> None:
    run_id = run_of(PROMPTS, lease_ttl_s=2, rest_steps=0)
    ranks = start(run_id, shares=True, prompt_count=PROMPTS, prefetch=False)
    shares = all_do(ranks, "next_batch")
    assert len({prompt_id for share in shares for prompt_id in ids(share)}) == PROMPTS
    assert all_report(ranks[3:], [attempts(shares[3])[:6]], 0) == 6  # one group, and half of one
    ranks[3].kill()
    assert all_report(ranks[:3], [attempts(share) for share in shares[:3]], 0) == 24
    wait_until(lambda: stats(run_id).leased_prompt_count == 0)
    seen = stats(run_id)
    assert (seen.attempt_count, seen.group_count, seen.mixed_group_count) == (30, 7, 7)

    # A process in its place goes on where another rank is, and is given the prompts of the first.
    ranks[3] = start(run_id, shares=True, prompt_count=PROMPTS, prefetch=False)[3]
    ranks[3]("resume", ranks[0]("state"), None, "")
    again = all_do(ranks, "next_batch")
    assert {p for share in again for p in ids(share)} == {p for share in shares for p in ids(share)}
    all_report(ranks, [attempts(share) for share in again], 1)
    assert stats(run_id).attempt_count == 30 + PROMPTS * ATTEMPTS


def play(ranks: Sequence[RankProcess], steps: range) -> list[Served]:
    """Steps of all ranks, which meet after each as DDP makes them; and the batches."""
    batches = []
    for step in steps:
        batch, *others = all_do(ranks, "next_batch")
        assert others == [batch] * (WORLD_SIZE - 1)
        rows = attempts(batch)  # of which each rank has one of each group
        all_report(ranks, [rows[rank::WORLD_SIZE] for rank in range(WORLD_SIZE)], step)
        batches.append(batch)
    return batches


@pytest.mark.parametrize("prefetch", [True, False])
def test_ranks_that_are_all_killed_go_on_from_the_checkpoint(
    start, run_of, stats, prefetch: bool
) -> None:
    run_id = run_of()
    options = {"prompt_count": PROMPTS, "reporter_count": WORLD_SIZE, "prefetch": prefetch}
    ranks = start(run_id, **options)
    play(ranks, range(2))
    state = json.loads(json.dumps(ranks[0]("state")))
    ranks[0]("checkpoint", "step-2", 2)
    first = play(ranks, range(2, 5))
    [batch, *_] = all_do(ranks, "next_batch")
    all_report(ranks[:2], cut(attempts(batch))[:2], 5)  # in the middle of a step
    for rank in ranks:
        rank.kill()

    ranks = start(run_id, **options)
    all_do(ranks, "resume", state, "step-2", "resumption-1")
    assert stats(run_id).attempt_count == 2 * PROMPTS * ATTEMPTS
    again = play(ranks, range(2, 5))
    if prefetch:  # only what was fetched before the checkpoint was chosen knowing the same
        first, again = first[:1], again[:1]
    assert [ids(batch) for batch in again] == [ids(batch) for batch in first]
    play(ranks, range(5, 7))
    seen = stats(run_id)
    assert seen.attempt_count == 7 * PROMPTS * ATTEMPTS
    assert seen.group_count == seen.mixed_group_count == 7 * PROMPTS


def test_ranks_stay_together_when_the_pool_runs_dry(start, run_of, stats) -> None:
    run_id = run_of(10)
    ranks = start(run_id, prompt_count=PROMPTS, reporter_count=WORLD_SIZE)
    batches = play(ranks, range(8))
    counted = Counter(prompt_id for batch in batches for prompt_id in ids(batch))
    seen = stats(run_id)
    assert seen.group_count == seen.mixed_group_count == counted.total()
    assert seen.attempt_count == counted.total() * ATTEMPTS


def test_an_empty_batch_stays_empty_for_ranks_that_come_later(start, run_of, stats) -> None:
    run_id = run_of(PROMPTS, rest_steps=0)
    ranks = start(run_id, prompt_count=PROMPTS, reporter_count=WORLD_SIZE, prefetch=False)
    [batch, *_] = all_do(ranks, "next_batch")
    assert ranks[0]("ask", "default-1", PROMPTS, 0) == []  # what a feed asks for, too early
    all_report(ranks, cut(attempts(batch)), 0)
    [batch, *others] = all_do(ranks, "next_batch")
    assert len(batch) == PROMPTS
    assert others == [batch] * (WORLD_SIZE - 1)
    assert all(lease.endswith("default-2") for _, lease, _ in batch)


@pytest.mark.slow
def test_a_ddp_training_counts_every_rollout_once(server, run_of, stats) -> None:
    run_id = run_of()
    script = Path(__file__).with_name("ddp_training.py")
    steps = 10
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script), server.address, run_id, str(steps)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["weight"] == second["weight"]
    leases = first["leases"] + second["leases"]
    assert len(leases) == len(set(leases)) == steps * PROMPTS
    seen = stats(run_id)
    assert seen.attempt_count == steps * PROMPTS * ATTEMPTS
    assert seen.pass_count == first["reward_sum"] + second["reward_sum"]
    assert seen.group_count == steps * PROMPTS
    assert seen.leased_prompt_count == 0
