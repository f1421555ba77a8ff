"""Published weights, taken up between leases, and the step that every attempt is reported with."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections import defaultdict

import pytest

from curriculum_api.v1 import run_pb2
from curriculum_api.v1 import trainer_service_pb2 as trainer_pb
from curriculum_probe import service, weights
from curriculum_probe.patience import Patience
from curriculum_probe.verifiers.pool import VerifierPool
from curriculum_probe.worker import Plan, Worker
from tests.probe import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of models that always write "a" and always "b"."""
    root = tmp_path_factory.mktemp("constant")
    return {letter: tiny.save(tiny.constant_model({letter: 1}), root / letter) for letter in "ab"}


@pytest.fixture
def publish(stubs):
    def call(pool, step, uri):
        policy = run_pb2.Policy(policy_step=step, uri=str(uri))
        request = trainer_pb.PublishPolicyRequest(run_id=pool.run_id, policy=policy)
        stubs.trainer.PublishPolicy(request)

    return call


@pytest.fixture
def sampled(pool_of, probe, models):
    """A run of prompts whose answer is "a", and the command on them with the engine."""
    pool = pool_of(window_steps=1)
    for number in range(4):
        pool.add(f"prompt {number}", {"answer": "a"})

    def run(**changes):
        settings = {
            "run": pool.run_id,
            "engine": "transformers",
            "endpoint": None,
            "model": models["b"],
            "max_tokens": 1,
            "policy_step": None,
            "verifier_processes": 1,
        }
        return probe(**{**settings, **changes})

    return pool, run


def by_step(pool):
    """Attempts and passes by policy step, of all prompts."""
    found = {}
    for name in pool.attempts():
        for window in pool.prompt(name).history:
            if window.attempt_count:
                steps = (window.first_policy_step, window.last_policy_step)
                attempts, passes = found.get(steps, (0, 0))
                found[steps] = attempts + window.attempt_count, passes + window.pass_count
    return found


def test_the_published_weights_are_loaded_before_anything_is_sampled(
    sampled, publish, models
) -> None:
    pool, run = sampled
    publish(pool, 3, models["a"])
    assert run() == 0
    assert by_step(pool) == {(3, 3): (32, 32)}


def test_a_step_that_was_told_keeps_the_weights(sampled, publish, models, caplog) -> None:
    pool, run = sampled
    publish(pool, 3, models["a"])
    assert run(policy_step=2) == 0
    assert by_step(pool) == {(2, 2): (32, 0)}
    assert "weights" not in caplog.text


def test_every_attempt_is_reported_with_the_step_of_its_weights(
    sampled, publish, models, wait_until, monkeypatch, caplog
) -> None:
    """Those of "a" pass and those of "b" fail, so a wrong step would show."""
    pool, run = sampled
    publish(pool, 1, models["a"])
    rewards_of, report = defaultdict(list), service.Service.report

    def note(self, *args, policy_step, outcomes):
        receipt = report(self, *args, policy_step=policy_step, outcomes=outcomes)
        rewards_of[policy_step] += outcomes.rewards
        return receipt

    def train():
        for step in range(2, 7):
            wait_until(lambda step=step: rewards_of[step - 1], 30)
            publish(pool, step, models["ba"[step % 2]])

    monkeypatch.setattr(service.Service, "report", note)
    trainer = threading.Thread(target=train)
    trainer.start()
    assert run(rounds=60, prompts=2, concurrency=8) == 0
    trainer.join()
    assert rewards_of.keys() == set(range(1, 7))
    for step, rewards in rewards_of.items():
        assert set(rewards) == {float(step % 2)}
    assert sum(map(len, rewards_of.values())) == sum(pool.attempts().values())
    assert caplog.text.count("weights loaded") == 6
    assert pool.leased() == set()


def test_a_half_written_checkpoint_is_skipped_and_the_old_weights_go_on(
    sampled, publish, models, tmp_path, monkeypatch, caplog
) -> None:
    pool, run = sampled
    publish(pool, 1, models["a"])
    assert run() == 0
    half = shutil.copytree(models["b"], tmp_path / "half")
    content = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(content[:-100])

    load = weights.Weights._load

    async def load_and_publish(self, wanted, drained):
        await load(self, wanted, drained)
        if wanted[0] == 1:
            publish(pool, 2, half)

    monkeypatch.setattr(weights.Weights, "_load", load_and_publish)
    assert run(rounds=3) == 0
    assert by_step(pool) == {(1, 1): (4 * 32, 4 * 32)}
    skipped = [r.getMessage() for r in caplog.records if "weights skipped" in r.getMessage()]
    assert len(skipped) == 1  # and not at every lease
    assert skipped[0].startswith("weights skipped policy_step=2 sampled_step=1 because=")
    assert "half: half-written or damaged: model.safetensors has" in skipped[0]


class Slow:
    """Loads for ever what is new."""

    loads_weights = True
    slots = 16

    def __init__(self) -> None:
        self.is_loading = False
        self.has_begun = asyncio.Event()

    async def load(self, uri):
        self.is_loading = uri == "/new"
        if not self.is_loading:
            return
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.is_loading = False

    async def sample(self, _prompt, _attempt_count):
        raise AssertionError


@pytest.mark.parametrize("has_lease", [False, True])
async def test_a_worker_that_is_stopped_waits_for_no_weights(
    server, pool, publish, monkeypatch, caplog, has_lease
) -> None:
    monkeypatch.setattr(weights, "LOOK_S", 0.05)
    engine, lease = Slow(), service.Service.lease
    pool.add_rates(0.5)
    publish(pool, 0, "/old" if has_lease else "/new")

    def publish_and_lease(*args, **kwargs):
        publish(pool, 1, "/new")
        return lease(*args, **kwargs)

    monkeypatch.setattr(service.Service, "lease", publish_and_lease)
    patience = Patience(10, threading.Event())
    with contextlib.closing(service.Service(server.address, pool.run_id, patience=patience)) as s:
        verifiers = VerifierPool(process_count=1, timeout_s=1.0, memory_bytes=2**30)
        made = Worker(Plan(pool.run_id, prompt_count=4, attempt_count=8), s, engine, verifiers)
        async with verifiers, asyncio.timeout(30):
            working = asyncio.create_task(made.run())
            await engine.has_begun.wait()
            assert len(pool.leased()) == has_lease
            made.stop()
            await working
    assert not engine.is_loading
    assert f"weights given up policy_step={has_lease:d} uri=/new" in caplog.text
    assert (pool.leased(), by_step(pool)) == (set(), {})


def test_without_weights_that_can_be_loaded_nothing_is_sampled(
    sampled, publish, monkeypatch, caplog
) -> None:
    pool, run = sampled
    monkeypatch.setattr("curriculum_probe.worker.FIRST_PAUSE_S", 0.01)
    publish(pool, 1, "/nowhere/step-1")
    assert run(rounds=3) == 0
    assert by_step(pool) == {}
    assert (
        "sampled_step=none because=/nowhere/step-1/model.safetensors: No such file" in caplog.text
    )
    assert caplog.text.count("pausing") == 2
    assert pool.leased() == set()
