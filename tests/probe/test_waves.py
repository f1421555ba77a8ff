"""Prompts are sampled only as often as it takes to know where they stand."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from curriculum_api.v1 import batch_pb2, probe_service_pb2
from curriculum_probe import reports, worker
from curriculum_probe.engines import Completion
from curriculum_probe.gate import Gate
from curriculum_probe.patience import Patience
from curriculum_probe.rounds import Round
from curriculum_probe.service import Service
from curriculum_probe.tools import Tools
from curriculum_probe.verifiers.verdict import Verdict


class FakeEngine:
    """Counts what it samples; `on_sample` is awaited meanwhile."""

    loads_weights = False
    slots = 64

    def __init__(self, on_sample=None) -> None:
        self.waves: dict[str, list[int]] = {}
        self._on_sample = on_sample

    async def sample(self, prompt, attempt_count):
        self.waves.setdefault(prompt, []).append(attempt_count)
        if self._on_sample is not None:
            await self._on_sample()
        return [Completion("text", 3)] * attempt_count


class FakeVerifiers:
    """Gives every attempt one score; None is an error."""

    def __init__(self, score) -> None:
        self.score = score

    async def prepare(self, _payload_json):
        """All can be verified."""

    async def verify(self, _payload_json, completions):
        return [Verdict(self.score, "" if self.score is not None else "broken")] * len(completions)


class FakeService:
    """Takes every report; says of the slots in `settled` that they are."""

    def __init__(self, settled=()) -> None:
        self.settled, self.attempts, self.released = settled, Counter(), 0

    def report(self, _request_id, _batch, *, policy_step, outcomes):
        del policy_step
        self.attempts.update(outcomes.slots)
        count = len(outcomes.slots)
        return probe_service_pb2.ReportProbesResponse(
            receipt=batch_pb2.ReportReceipt(attempt_count=count),
            settled_slots=sorted(set(outcomes.slots) & set(self.settled)),
        )

    def release(self, _batch):
        self.released += 1


@pytest.fixture(autouse=True)
def _reports_are_soon(monkeypatch):
    monkeypatch.setattr(reports, "GATHER_S", 0.01)


def batch_of(*prompts):
    """Of reasons and attempts."""
    batch = batch_pb2.Batch(batch_id="b")
    for slot, (reason, attempt_count) in enumerate(prompts):
        served = batch.prompts.add(slot=slot, attempt_count=attempt_count, reason=reason)
        served.prompt.prompt_id = served.prompt.text = f"p{slot}"
    return batch


async def see_through(batch, engine, verifiers, service, *, stops_early=True):
    gate = Gate(lambda: engine.slots, lambda: None)
    made = Round(batch, Tools("run", service, engine, verifiers, gate, stops_early))
    await made.prepare()
    async with asyncio.timeout(20):
        await made.run(0)


PROBE, REACH = batch_pb2.REASON_PROBE, batch_pb2.REASON_PROBE_REACH
SENTINEL, REFERENCE = batch_pb2.REASON_SENTINEL, batch_pb2.REASON_REFERENCE


async def test_who_is_settled_is_sampled_no_more() -> None:
    engine, service = FakeEngine(), FakeService(settled=[0])
    await see_through(
        batch_of((REACH, 20), (REACH, 20), (PROBE, 12)), engine, FakeVerifiers(1.0), service
    )
    assert engine.waves == {"p0": [8], "p1": [8, 8, 4], "p2": [12]}
    assert service.attempts == {0: 8, 1: 20, 2: 12}
    assert service.released == 1  # the rest of the first


async def test_a_fixed_sample_is_sampled_at_once_and_whole() -> None:
    engine, service = FakeEngine(), FakeService(settled=[0, 1])
    batch = batch_of((SENTINEL, 24), (REFERENCE, 64))
    await see_through(batch, engine, FakeVerifiers(1.0), service)
    assert engine.waves == {"p0": [24], "p1": [64]}
    assert service.released == 0
    engine = FakeEngine()
    await see_through(batch_of((REACH, 24)), engine, FakeVerifiers(1.0), service, stops_early=False)
    assert engine.waves == {"p0": [24]}


async def test_a_verifier_that_fails_on_a_wave_ends_it() -> None:
    engine, service = FakeEngine(), FakeService()
    await see_through(batch_of((REACH, 32)), engine, FakeVerifiers(None), service)
    assert engine.waves == {"p0": [8]}
    assert (service.attempts, service.released) == ({}, 1)


async def test_no_wave_begins_when_the_weights_are_to_change() -> None:
    """Its attempts would be of other weights than the round's."""
    gate_passed = asyncio.Event()

    async def held():
        gate_passed.set()
        await asyncio.sleep(0.05)

    engine, service = FakeEngine(held), FakeService()
    gate = Gate(lambda: engine.slots, lambda: None)
    made = Round(
        batch_of((REACH, 32), (REACH, 32)),
        Tools("run", service, engine, FakeVerifiers(0.0), gate),
    )
    await made.prepare()
    made.finish_wave()  # too soon: it has not begun, and will sample what is loaded then
    running = asyncio.create_task(made.run(0))
    await gate_passed.wait()
    made.finish_wave()
    async with asyncio.timeout(20):
        await running
    assert engine.waves == {"p0": [8], "p1": [8]}
    assert service.attempts == {0: 8, 1: 8}
    assert service.released == 1


async def test_long_shots_end_with_what_the_server_says(server, pool) -> None:
    """The real one, with a pool that has failed so far."""
    pool.add_rates(*[0.0] * 60)
    engine, verifiers = FakeEngine(), FakeVerifiers(0.0)
    service = Service(server.address, pool.run_id, patience=Patience(10, threading.Event()))

    async def work(**plan):
        made = worker.Worker(
            worker.Plan(pool.run_id, policy_step=0, round_count=1, **plan),
            service,
            engine,
            verifiers,
        )
        async with asyncio.timeout(60):
            await made.run()

    try:
        await work(prompt_count=60, attempt_count=24)
        assert set(pool.attempts().values()) == {24}
        for score in (0.0, 1.0):
            engine.waves, verifiers.score = {}, score
            # Some 200 of these are looked at 4 times, and beside that for a twentieth others are
            # tried that failed so far, in up to 32 attempts each.
            for number in range(400):
                pool.add(f"{score} new {number}", {"answer": "right"})
            await work(prompt_count=500)
            is_repeated = max(map(len, engine.waves.values())) > 1
            assert is_repeated == (score == 0.0)
    finally:
        service.close()
