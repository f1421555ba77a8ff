"""Who is let to the engine."""

from __future__ import annotations

import asyncio

import pytest

from curriculum_probe.gate import Gate


class Visitors:
    """Tasks that enter a gate and leave when told to."""

    def __init__(self, room):
        self.gate = Gate(lambda: room, lambda: None)
        self.inside, self.turned_away = [], []
        self._leaving = {}
        self.tasks = {}

    async def come(self, name, attempt_count):
        self._leaving[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._visit(name, attempt_count))
        await settle()

    async def leave(self, name):
        self._leaving[name].set()
        await settle()

    async def cancel(self, name):
        self.tasks[name].cancel()
        await settle()

    async def _visit(self, name, attempt_count):
        if not await self.gate.enter(attempt_count):
            self.turned_away.append(name)
            return
        self.inside.append(name)
        try:
            await self._leaving[name].wait()
        finally:
            self.inside.remove(name)
            self.gate.leave(attempt_count)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_as_many_enter_as_there_is_room_for_and_the_last_may_exceed_it() -> None:
    visitors = Visitors(room=10)
    for name in "abcd":
        await visitors.come(name, 4)
    assert visitors.inside == ["a", "b", "c"]
    assert visitors.gate.attempt_count == 16
    await visitors.leave("b")
    assert visitors.inside == ["a", "c", "d"]


async def test_a_prompt_larger_than_the_room_enters_alone() -> None:
    visitors = Visitors(room=10)
    await visitors.come("large", 99)
    await visitors.come("small", 1)
    assert visitors.inside == ["large"]
    await visitors.leave("large")
    assert visitors.inside == ["small"]


async def test_they_enter_in_order() -> None:
    visitors = Visitors(room=10)
    await visitors.come("a", 10)
    await visitors.come("b", 10)
    await visitors.come("c", 1)
    await visitors.leave("a")
    assert visitors.inside == ["b"]


async def test_who_is_cancelled_while_waiting_takes_no_room() -> None:
    visitors = Visitors(room=10)
    for name in "abc":
        await visitors.come(name, 10)
    await visitors.cancel("b")
    await visitors.leave("a")
    assert visitors.inside == ["c"]
    assert visitors.gate.attempt_count == 10


async def test_who_is_cancelled_before_knowing_to_be_inside_takes_no_room() -> None:
    gate = Gate(lambda: 10, lambda: None)
    assert await gate.enter(10)
    waiting = asyncio.create_task(gate.enter(10))
    await settle()
    gate.leave(10)
    waiting.cancel()
    await settle()
    assert gate.attempt_count == 0


@pytest.mark.parametrize("are_waiting", [True, False])
async def test_idle_is_when_nobody_is_inside_or_waits(are_waiting) -> None:
    visitors = Visitors(room=10)
    await visitors.gate.idle()
    await visitors.come("a", 10)
    if are_waiting:
        await visitors.come("b", 10)
    idle = asyncio.create_task(visitors.gate.idle())
    await visitors.leave("a")
    assert idle.done() is not are_waiting
    if are_waiting:
        await visitors.leave("b")
        assert idle.done()


async def test_a_closed_gate_turns_away_and_lets_those_inside_finish() -> None:
    visitors = Visitors(room=10)
    await visitors.come("a", 10)
    await visitors.come("b", 10)
    visitors.gate.close()
    await visitors.come("c", 1)
    assert visitors.turned_away == ["b", "c"]
    assert visitors.inside == ["a"]
    await visitors.leave("a")
    await visitors.gate.idle()
