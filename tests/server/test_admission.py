"""Who is taken, who waits and who is refused, without a network."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from curriculum_api.errors import OverloadedError
from curriculum_server.admission import LEAST_PAUSE_S, Admission, Bounds


class Calls:
    """Calls on their way through one admission, and the order in which they ran."""

    def __init__(self, **bounds):
        defaults = {"line": 8, "running": 1, "running_per_run": 1, "held_bytes": 1000}
        self.admission = Admission(Bounds(**defaults | bounds))
        self.ran = []
        self.refused = []
        self._tasks = {}
        self._ends = {}

    async def come(self, name, connection="c", run_id="r"):
        """Let a call arrive; it runs until `finish`."""
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._pass(name, connection, run_id))
        await asyncio.sleep(0)

    async def finish(self, name):
        self._ends[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)

    async def leave(self, name):
        """Its caller goes away."""
        self._tasks[name].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks[name]

    async def finish_all(self):
        for end in self._ends.values():
            end.set()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _pass(self, name, connection, run_id):
        try:
            async with asyncio.timeout(60) as limit:
                call = self.admission.arrive(connection, limit)
                try:
                    await self.admission.start(call, run_id)
                    self.ran.append(name)
                    await self._ends[name].wait()
                finally:
                    self.admission.end(call)
        except (OverloadedError, TimeoutError):
            self.refused.append(name)


async def test_calls_run_at_once_while_there_is_room():
    calls = Calls(running=3, running_per_run=3)
    for name in "abcd":
        await calls.come(name)
    assert calls.ran == ["a", "b", "c"]
    await calls.finish("b")
    assert calls.ran == ["a", "b", "c", "d"]
    await calls.finish_all()


async def test_who_was_served_longest_ago_comes_next():
    calls = Calls()
    await calls.come("polite 1", "polite")
    await calls.finish("polite 1")
    for number in range(5):
        await calls.come(f"greedy {number}", "greedy")
    await calls.come("polite 2", "polite")
    await calls.finish("greedy 0")
    assert calls.ran[-1] == "polite 2"
    await calls.finish("polite 2")
    assert calls.ran[-1] == "greedy 1"
    await calls.finish_all()


async def test_connections_take_turns_whatever_each_asks_for():
    calls = Calls(line=30)
    await calls.come("first")
    for number in range(10):
        await calls.come(f"greedy {number}", "greedy")
    for number in range(3):
        await calls.come(f"other {number}", "other")
    for _ in range(7):
        await calls.finish(calls.ran[-1])
    assert [name.split()[0] for name in calls.ran[1:8]].count("other") == 3
    await calls.finish_all()


async def test_one_run_does_not_take_every_place():
    calls = Calls(running=3, running_per_run=2)
    for name in ("stuck 1", "stuck 2", "stuck 3"):
        await calls.come(name, run_id="stuck")
    await calls.come("well", run_id="well")
    assert calls.ran == ["stuck 1", "stuck 2", "well"]
    await calls.finish("well")
    assert calls.ran == ["stuck 1", "stuck 2", "well"]
    await calls.finish("stuck 1")
    assert calls.ran[-1] == "stuck 3"
    await calls.finish_all()


async def test_a_full_line_costs_the_connection_with_most_calls_its_newest():
    calls = Calls(line=4)
    await calls.come("first")
    for number in range(4):
        await calls.come(f"greedy {number}", "greedy")
    await calls.come("polite", "polite")
    await asyncio.sleep(0.01)
    assert calls.refused == ["greedy 3"]
    await calls.come("greedy 4", "greedy")
    await asyncio.sleep(0)
    assert calls.refused == ["greedy 3", "greedy 4"]
    await calls.finish_all()
    assert set(calls.ran) == {"first", "polite", "greedy 0", "greedy 1", "greedy 2"}


async def test_a_call_waits_for_a_bounded_time():
    calls = Calls(wait_s=0.02)
    await calls.come("runs")
    await calls.come("waits")
    await asyncio.sleep(0.1)
    assert calls.refused == ["waits"]
    await calls.come("next")
    await calls.finish("runs")
    assert calls.ran == ["runs", "next"]
    await calls.finish_all()


async def test_a_caller_that_leaves_frees_its_place():
    calls = Calls()
    for name in "abcd":
        await calls.come(name)
    await calls.leave("b")
    await calls.leave("a")
    assert calls.ran == ["a", "c"]
    await calls.finish("c")
    assert calls.ran == ["a", "c", "d"]
    await calls.finish_all()


async def test_a_caller_that_leaves_at_its_turn_hands_it_on():
    calls = Calls()
    for name in "abc":
        await calls.come(name)
    calls._ends["a"].set()
    await asyncio.sleep(0)  # it ends now, and "b" is called up
    await calls.leave("b")
    await asyncio.sleep(0)
    assert calls.ran[-1] == "c"
    await calls.finish_all()


@pytest.mark.parametrize("seed", range(20))
async def test_every_place_is_free_again_after_any_traffic(seed):
    rng = random.Random(seed)
    calls = Calls(line=5, running=2, running_per_run=1, wait_s=0.01)
    for number in range(200):
        await calls.come(number, rng.choice("abc"), rng.choice("xy"))
        chosen = rng.randrange(number + 1)
        if rng.random() < 0.3:
            await calls.leave(chosen)
        elif rng.random() < 0.5:
            calls._ends[chosen].set()
        if rng.random() < 0.02:
            await asyncio.sleep(0.015)
    await calls.finish_all()
    admission = calls.admission
    assert (admission._line, admission._line_length, admission._waiting) == ({}, 0, [])
    assert (admission._running, admission._running_count) == ({}, 0)


async def test_bytes_are_bounded_in_all_and_by_connection():
    admission = Admission(Bounds(line=9, running=9, running_per_run=9, held_bytes=400))
    limit = asyncio.timeout(None)
    calls = {name: admission.arrive(name[0], limit) for name in ("a1", "a2", "b", "c", "d")}
    admission.hold_request(calls["a1"], 100)
    with pytest.raises(OverloadedError, match="this connection"):
        admission.hold_request(calls["a2"], 1)
    admission.hold_answer(calls["a1"], 350)
    with pytest.raises(OverloadedError, match="350 bytes of all"):
        admission.hold_request(calls["b"], 51)
    admission.hold_request(calls["b"], 50)
    admission.release(calls["a1"])
    admission.hold_request(calls["c"], 300)
    for call in calls.values():
        admission.release(call)
    admission.hold_request(calls["d"], 10_000)  # one call always fits


async def test_the_pause_that_is_asked_for_grows_with_the_line():
    calls = Calls(line=500, wait_s=60)
    assert calls.admission.retry_after_s == LEAST_PAUSE_S
    for number in range(300):
        await calls.come(number)
    assert 1 < calls.admission.retry_after_s <= 5
    await calls.finish_all()
