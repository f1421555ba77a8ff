"""What becomes of a lease when the weights change, when the worker stops, and when it is empty."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter

import pytest

from curriculum_api.v1 import batch_pb2, probe_service_pb2, run_pb2
from curriculum_probe import renewal, reports
from curriculum_probe.engines import Completion
from curriculum_probe.unusable import Unusable
from curriculum_probe.verifiers.verdict import Verdict
from curriculum_probe.worker import Plan, Worker

REFERENCE, REACH = batch_pb2.REASON_REFERENCE, batch_pb2.REASON_PROBE_REACH
PROBE = batch_pb2.REASON_PROBE


class FakeService:
    """A run at step 0 that leases what it is told to, a policy step and prompts at a time, and the
    reference policy's to nobody else."""

    def __init__(self, *leases) -> None:
        self._leases = list(leases)
        self.attempts: dict[int, Counter[str]] = {}
        """Reported ones by policy step."""
        self.renewed, self.released = threading.Event(), Counter[str]()
        self.on_report = lambda policy_step: None

    def run(self):
        config = run_pb2.RunConfig(reward_max=1, pass_threshold=1)
        config.selection.group_size = 8
        return run_pb2.Run(config=config, policy=policy_of(0))

    def lease(self, request_id, _prompt_count, *, is_reference, **_):
        policy_step, *prompts = self._leases.pop(0)
        assert all((reason == REFERENCE) == is_reference for _, reason, _ in prompts)
        batch = batch_pb2.Batch(batch_id=request_id)
        for slot, (name, reason, attempt_count) in enumerate(prompts):
            served = batch.prompts.add(slot=slot, attempt_count=attempt_count, reason=reason)
            served.prompt.prompt_id = served.prompt.text = name
        return probe_service_pb2.LeaseProbesResponse(batch=batch, policy=policy_of(policy_step))

    def renew(self, _batch):
        self.renewed.set()

    def release(self, batch):
        self.released.update(served.prompt.prompt_id for served in batch.prompts)

    def report(self, _request_id, batch, *, policy_step, outcomes):
        names = [batch.prompts[slot].prompt.prompt_id for slot in outcomes.slots]
        self.attempts.setdefault(policy_step, Counter()).update(names)
        self.on_report(policy_step)
        receipt = batch_pb2.ReportReceipt(attempt_count=len(names))
        return probe_service_pb2.ReportProbesResponse(receipt=receipt)


def policy_of(step):
    return run_pb2.Policy(policy_step=step, uri=f"w{step}")


class FakeEngine:
    slots = 64

    def __init__(self, *, loads_weights=True) -> None:
        self.loads_weights = loads_weights
        self.sampled, self.loaded = Counter[str](), list[str]()
        self.before: dict[str, threading.Event] = {}
        """What a prompt's attempts or a checkpoint's loading take."""

    async def sample(self, prompt, attempt_count):
        await self._wait(prompt)
        self.sampled[prompt] += attempt_count
        return [Completion("text", 3)] * attempt_count

    async def load(self, uri):
        await self._wait(uri)
        self.loaded.append(uri)

    async def _wait(self, name):
        if name in self.before:
            await asyncio.to_thread(self.before[name].wait, 10)


class FakeVerifiers:
    """Fails every attempt, and prepares at once or never."""

    def __init__(self, *, prepares=True) -> None:
        self.is_preparing, self._prepared = asyncio.Event(), asyncio.Event()
        if prepares:
            self._prepared.set()

    async def prepare(self, _payload_json):
        self.is_preparing.set()
        await self._prepared.wait()

    async def verify(self, _payload_json, completions):
        return [Verdict(0.0)] * len(completions)


@pytest.fixture(autouse=True)
def _reports_are_soon(monkeypatch):
    monkeypatch.setattr(reports, "GATHER_S", 0.01)


async def work(service, engine, **plan):
    settings = Plan("run", 4, **{"round_count": 1, **plan})
    made = Worker(settings, service, engine, FakeVerifiers())
    async with asyncio.timeout(20):
        await made.run()


async def test_who_samples_the_reference_policy_keeps_its_weights_whatever_is_published() -> None:
    service, engine = FakeService((1, ("p", REFERENCE, 64))), FakeEngine()
    await work(service, engine, policy_step=0, is_reference=True)
    assert (engine.sampled, engine.loaded) == ({"p": 64}, [])
    assert service.attempts == {0: {"p": 64}}


async def test_who_samples_the_reference_policy_leaves_when_nothing_is_left_to_do() -> None:
    service, engine = FakeService((0, ("p", REFERENCE, 64)), (0,), (0,)), FakeEngine()
    await work(service, engine, policy_step=0, is_reference=True, round_count=None)
    assert engine.sampled == {"p": 64}


async def test_who_follows_the_run_takes_nothing_of_the_reference_policy_at_step_0() -> None:
    """Newer weights may be published before the first attempt is made."""
    service, engine = FakeService((1, ("p", PROBE, 8))), FakeEngine()
    await work(service, engine)
    assert engine.loaded == ["w0", "w1"]
    assert service.attempts == {1: {"p": 8}}


async def test_no_wave_begins_when_an_endpoint_has_changed_its_weights() -> None:
    """It is not drained for it, so what is being sampled may still be of the old ones."""
    service = FakeService((0, ("long shot", REACH, 32)), (6, ("other", PROBE, 4)))
    engine, is_adopted = FakeEngine(loads_weights=False), threading.Event()
    engine.before["long shot"] = is_adopted
    service.on_report = lambda policy_step: is_adopted.set() if policy_step == 6 else None
    await work(service, engine, round_count=2)
    assert service.attempts == {0: {"long shot": 8}, 6: {"other": 4}}
    assert engine.sampled == {"long shot": 8, "other": 4}
    assert service.released == {"long shot": 1}


async def test_who_stops_does_not_wait_for_verifiers_that_are_being_prepared() -> None:
    service, engine = FakeService((0, ("p", PROBE, 8))), FakeEngine()
    verifiers = FakeVerifiers(prepares=False)
    made = Worker(Plan("run", 4, drain_s=math.inf), service, engine, verifiers)
    async with asyncio.timeout(20):
        working = asyncio.create_task(made.run())
        await verifiers.is_preparing.wait()
        made.stop()
        await working
    assert engine.sampled == {}
    assert service.released == {"p": 1}


@pytest.mark.parametrize("prompts", [[("p", PROBE, 8)], []])
async def test_a_lease_is_kept_while_weights_load_if_there_is_anything_in_it(
    prompts, monkeypatch
) -> None:
    monkeypatch.setattr(renewal, "MIN_RENEWAL_S", 0.01)
    service, engine = FakeService((1, *prompts)), FakeEngine()
    engine.before["w1"] = service.renewed if prompts else threading.Event()
    if not prompts:  # ten times what it takes until a lease is renewed
        threading.Timer(0.1, engine.before["w1"].set).start()
    await work(service, engine)
    assert service.renewed.is_set() == bool(prompts)


def test_prompts_whose_time_is_over_are_not_counted_as_unusable() -> None:
    """So many more are leased in their place."""
    unusable = Unusable()
    unusable.add("for ever", math.inf)
    unusable.add("until now", 0.0)
    assert ("for ever" in unusable, "until now" in unusable) == (True, False)
    assert len(unusable) == 1
