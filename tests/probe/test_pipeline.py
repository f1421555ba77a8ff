"""Sampling, verifying and reporting side by side."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import urllib.request
from functools import partial

import pytest

from curriculum_probe import progress, reports, worker
from curriculum_probe.engines import Completion, EngineError, RefusedError
from curriculum_probe.patience import Patience
from curriculum_probe.service import Service
from curriculum_probe.verifiers.verdict import Verdict


class FakeEngine:
    """Samples at once, unless it is told to fail."""

    loads_weights = False

    def __init__(self, slots=16) -> None:
        self.slots = slots
        self.prompts: list[str] = []
        self.fails_from = math.inf
        self.inside = self.most_inside = 0

    async def sample(self, prompt, attempt_count):
        self.prompts.append(prompt)
        if len(self.prompts) >= self.fails_from:
            raise EngineError("the GPU fell off the bus")
        self.inside += attempt_count
        self.most_inside = max(self.inside, self.most_inside)
        await asyncio.sleep(0)
        self.inside -= attempt_count
        return [Completion("right", 3)] * attempt_count

    async def load(self, _uri):
        raise AssertionError

    async def close(self):
        """Nothing is held."""


class FakeVerifiers:
    """Passes everything, once `until` lets it."""

    def __init__(self, until=None) -> None:
        self._until = until

    async def prepare(self, _payload_json):
        """All can be verified."""

    async def verify(self, _payload_json, completions):
        if self._until is not None:
            await self._until()
        return [Verdict(1.0)] * len(completions)


@pytest.fixture
def work(server, pool):
    """A worker's run over the real service."""
    services = []

    async def run(engine, verifiers, service=None, **plan):
        patience = Patience(10, threading.Event())
        services.append(Service(server.address, pool.run_id, patience=patience))
        settings = {"prompt_count": 4, "attempt_count": 8, "policy_step": 0, **plan}
        made = worker.Worker(
            worker.Plan(pool.run_id, **settings), service or services[-1], engine, verifiers
        )
        async with asyncio.timeout(60):
            await made.run()

    yield run
    for each in services:
        each.close()


async def test_sampling_waits_for_no_verdict(work, pool, wait_until) -> None:
    """No verdict comes until three leases are sampled."""
    texts = pool.add_rates(*[1.0] * 12)
    engine = FakeEngine()
    until_all = partial(asyncio.to_thread, wait_until, lambda: len(engine.prompts) == 12)
    verifiers = FakeVerifiers(until_all)
    await work(engine, verifiers, round_count=3)
    assert pool.attempts() == dict.fromkeys(texts, 8)


async def test_sampling_waits_for_no_report(work, pool, monkeypatch, wait_until) -> None:
    texts = pool.add_rates(*[1.0] * 12)
    engine, report = FakeEngine(), Service.report

    def slow(self, *args, **kwargs):
        wait_until(lambda: len(engine.prompts) == 12)
        return report(self, *args, **kwargs)

    monkeypatch.setattr(Service, "report", slow)
    await work(engine, FakeVerifiers(), round_count=3)
    assert pool.attempts() == dict.fromkeys(texts, 8)


async def test_verifying_that_is_too_slow_holds_up_leases(work, pool, monkeypatch) -> None:
    """Or else what waits for it would grow without end."""
    monkeypatch.setattr(worker, "MAX_UNVERIFIED", 1)
    pool.add_rates(*[1.0] * 40)
    engine, seen = FakeEngine(slots=16), []

    async def wait():
        await asyncio.sleep(0.01)
        seen.append(len(engine.prompts))

    await work(engine, FakeVerifiers(wait), round_count=10)
    assert seen[0] <= 12  # two leases, of which the first has filled the bound, and one under way


async def test_the_engine_has_no_more_than_its_slots_and_a_prompt(work, pool) -> None:
    pool.add_rates(*[1.0] * 12)
    engine = FakeEngine(slots=20)
    await work(engine, FakeVerifiers(), round_count=3)
    assert engine.most_inside == 24


async def test_what_was_verified_is_reported_when_the_engine_fails(work, pool) -> None:
    pool.add_rates(*[1.0] * 8)
    engine = FakeEngine(slots=8)
    engine.fails_from = 6
    with pytest.raises(EngineError, match="fell off the bus"):
        await work(engine, FakeVerifiers())
    assert sum(pool.attempts().values()) == 40
    assert pool.leased() == set()


async def test_a_refused_prompt_is_not_sampled_again(work, pool) -> None:
    texts = pool.add_rates(1.0, 1.0, 1.0)

    class Choosy(FakeEngine):
        async def sample(self, prompt, attempt_count):
            if prompt == texts[0]:
                self.prompts.append(prompt)
                raise RefusedError("too long")
            return await super().sample(prompt, attempt_count)

    engine = Choosy()
    await work(engine, FakeVerifiers(), round_count=4)
    assert engine.prompts.count(texts[0]) == 1
    assert pool.leased() == set()


async def test_reports_are_gathered(work, pool, monkeypatch) -> None:
    monkeypatch.setattr(reports, "GATHER_PROMPTS", 5)
    texts = pool.add_rates(*[1.0] * 12)
    sizes, report = [], Service.report

    def note(self, *args, outcomes, **kwargs):
        sizes.append(len(outcomes.slots) // 8)
        return report(self, *args, outcomes=outcomes, **kwargs)

    monkeypatch.setattr(Service, "report", note)
    await work(FakeEngine(slots=200), FakeVerifiers(), prompt_count=12, round_count=1)
    assert sizes == [5, 5, 2]
    assert pool.attempts() == dict.fromkeys(texts, 8)


async def test_a_report_waits_only_a_moment_for_slow_prompts(
    work, pool, monkeypatch, wait_until
) -> None:
    monkeypatch.setattr(reports, "GATHER_S", 0.05)
    texts = pool.add_rates(1.0, 1.0)

    class Slow(FakeEngine):
        async def sample(self, prompt, attempt_count):
            if prompt == texts[1]:
                await asyncio.to_thread(wait_until, lambda: pool.attempts()[texts[0]])
            return await super().sample(prompt, attempt_count)

    await work(Slow(), FakeVerifiers(), round_count=1)
    assert pool.attempts() == dict.fromkeys(texts, 8)


async def test_progress_is_logged(work, pool, monkeypatch, caplog) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.01)
    pool.add_rates(*[1.0] * 8)
    verifiers = FakeVerifiers(lambda: asyncio.sleep(0.05))
    await work(FakeEngine(), verifiers, round_count=2)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("probing ")]
    assert lines
    names = [word.partition("=")[0] for word in lines[0].split()[1:]]
    assert names == [
        "tokens_per_s",
        "prompts_per_s",
        "attempts",
        "pass_share",
        "bands_settled",
        "unverified",
        "verifier_errors",
    ]


def test_prometheus_reads_what_was_done(probe, pool, endpoint) -> None:
    pool.add_rates(1.0, 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    found = []

    def read(_number):
        with urllib.request.urlopen(f"http://{address}/metrics") as response:
            lines = response.read().decode().splitlines()
        found.append(dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#")))

    endpoint.on_request = read
    assert probe(metrics=address, rounds=2) == 0
    first, last = found[0], found[-1]  # before anything, and with all of the first round
    assert float(first["curriculum_probe_engine_attempts"]) == 16
    for name in ("attempts", "passes", "sampled_attempts"):
        metric = f"curriculum_probe_{name}_total"
        # The first may have seen one of the two prompts, if the other's answer was slow to begin.
        assert float(last[metric]) - float(first[metric]) in (8, 16, 24)


def test_metrics_at_a_port_that_is_taken_are_refused(probe, pool, error_line) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert probe(metrics=f"127.0.0.1:{taken.getsockname()[1]}") == 1
    assert error_line().endswith("Address already in use")
