"""Which attempts share a batch."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum_probe.engines import Completion
from curriculum_probe.engines.batcher import Batcher, choose


@dataclass(eq=False)
class Waiting:
    length: int
    left_count: int
    token_ids: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids = [0] * self.length


def test_the_oldest_comes_first_and_the_nearest_in_length_with_it() -> None:
    pending = [Waiting(100, 4), Waiting(190, 4), Waiting(400, 4), Waiting(20, 4), Waiting(110, 4)]
    assert choose(pending, 64, None, 8) == [(pending[0], 4), (pending[4], 4), (pending[1], 4)]


def test_short_prompts_share_a_batch_whatever_their_proportion() -> None:
    pending = [Waiting(3, 4), Waiting(64, 4), Waiting(65, 4)]
    assert choose(pending, 64, None, 8) == [(pending[0], 4), (pending[1], 4)]


def test_a_batch_is_filled_whatever_their_length_if_more_is_written_than_read() -> None:
    pending = [Waiting(100, 4), Waiting(400, 4), Waiting(20, 4), Waiting(110, 4)]
    batch = [(pending[0], 4), (pending[3], 4), (pending[2], 4), (pending[1], 4)]
    assert choose(pending, 64, None, 200) == batch
    assert choose(pending, 64, None, 199) == batch[:3]  # 2 x (100 + 199) < 400 + 199


def test_a_prompt_of_many_attempts_comes_in_parts() -> None:
    first, second = Waiting(10, 50), Waiting(10, 50)
    assert choose([first, second], 64, None, 8) == [(first, 50), (second, 14)]


@given(
    st.lists(st.builds(Waiting, st.integers(1, 300), st.integers(1, 40)), min_size=1),
    st.integers(1, 100),
    st.none() | st.integers(1, 5000),
    st.integers(1, 50),
)
def test_no_batch_exceeds_its_bounds_and_none_is_empty(pending, rows, tokens, new_tokens) -> None:
    batch = choose(pending, rows, tokens, new_tokens)
    assert batch[0][0] is pending[0]
    counts = [count for _, count in batch]
    assert all(1 <= count <= request.left_count for request, count in batch)
    assert len({id(request) for request, _ in batch}) == len(batch)
    assert sum(counts) <= rows
    width = max(request.length for request, _ in batch) + new_tokens
    assert sum(counts) == 1 or tokens is None or sum(counts) * width <= tokens


class Generator:
    """Notes its batches, and waits in each until it is let go on."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.steps = threading.Semaphore(0)

    def __call__(self, prompts, counts):
        self.batches.append(list(zip(map(len, prompts), counts, strict=True)))
        assert self.steps.acquire(timeout=10)
        return [[Completion("x", 1)] * count for count in counts]


@pytest.fixture
def generator():
    return Generator()


@pytest.fixture
def batcher(generator):
    made = Batcher(generator, row_count=8, new_token_count=4, out_of_memory=MemoryError)
    yield made
    generator.steps.release(1000)
    made.close()


async def test_what_comes_while_a_batch_is_generated_makes_the_next_one(
    batcher, generator, wait_until
) -> None:
    first = asyncio.create_task(batcher.sample([0] * 5, 3))
    await asyncio.to_thread(wait_until, lambda: generator.batches)
    rest = [asyncio.create_task(batcher.sample([0] * n, 3)) for n in (6, 7, 8)]
    await asyncio.sleep(0)
    generator.steps.release(4)
    answers = await asyncio.gather(first, *rest)
    assert list(map(len, answers)) == [3, 3, 3, 3]
    assert generator.batches == [[(5, 3)], [(6, 3), (7, 3), (8, 2)], [(8, 1)]]


async def test_who_does_not_wait_any_more_is_left_out(batcher, generator, wait_until) -> None:
    first = asyncio.create_task(batcher.sample([0] * 5, 3))
    await asyncio.to_thread(wait_until, lambda: generator.batches)
    gone = asyncio.create_task(batcher.sample([0] * 6, 3))
    last = asyncio.create_task(batcher.sample([0] * 7, 3))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    generator.steps.release(2)
    await asyncio.gather(first, last)
    assert generator.batches == [[(5, 3)], [(7, 3)]]


async def test_a_call_is_made_between_batches(batcher, generator, wait_until) -> None:
    sampling = asyncio.create_task(batcher.sample([0] * 5, 16))
    await asyncio.to_thread(wait_until, lambda: generator.batches)
    call = asyncio.create_task(batcher.between(lambda: len(generator.batches)))
    await asyncio.sleep(0)
    generator.steps.release(2)
    assert await call == 1
    assert len(await sampling) == 16
    with pytest.raises(ZeroDivisionError):
        await batcher.between(lambda: 1 // 0)


async def test_what_fills_a_batch_waits_for_nothing_more(batcher, generator, monkeypatch) -> None:
    monkeypatch.setattr("curriculum_probe.engines.batcher.LINGER_S", 60.0)
    generator.steps.release(2)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*[batcher.sample([0] * 5, 4) for _ in range(2)])
        assert list(map(len, answers)) == [4, 4]
        assert await batcher.between(lambda: generator.batches) == [[(5, 4), (5, 4)]]
