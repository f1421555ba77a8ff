"""CurriculumTaskSampler over a real service, called as prime-rl's orchestrator calls a sampler."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curriculum_api.errors import InvalidRequestError
from curriculum_client import Feed, TrainerClient
from curriculum_client.adapters.prime_rl import CurriculumTaskSampler
from curriculum_client.testing import FakeCurriculum
from tests.adapters.contract import recorded

GROUP_SIZE = 4
SELECTION = {"group_size": GROUP_SIZE, "reach_attempt_factor": 1}
EXAMPLE = Path(__file__).parents[2] / "clients/examples/train_prime_rl.py"


class Orchestrator:
    """One training: its step and its sampler."""

    def __init__(self, client: TrainerClient, prompt_count: int = 4, **sampler: Any) -> None:
        self.feed = Feed(client, prompt_count, attempts_per_prompt=GROUP_SIZE)
        self.step = 0
        self.sampler = CurriculumTaskSampler(self.feed, policy_step=lambda: self.step, **sampler)

    def draw(self, count: int) -> list[Any]:
        return [next(self.sampler) for _ in range(count)]

    def train(self, step_count: int) -> list[str]:
        """The examples that it was given."""
        given = []
        for _ in range(step_count):
            for task in self.draw(4):
                given.append(task["example_id"])
                self.sampler.observe(group(task, [1, 0, 1, 0]))
            self.step += 1
        return given


def group(task: dict[str, Any], rewards: list[Any]) -> list[dict[str, Any]]:
    return [{"example_id": task["example_id"], "reward": reward} for reward in rewards]


@pytest.fixture
def orchestrate(server: Any) -> Iterator[Callable[..., Orchestrator]]:
    made: list[Orchestrator] = []

    def orchestrate(run_id: str, **options: Any) -> Orchestrator:
        made.append(Orchestrator(TrainerClient(server.address, run_id=run_id), **options))
        return made[-1]

    yield orchestrate
    for orchestrator in made:
        orchestrator.feed.close()
        orchestrator.feed.client.close()


def test_the_class_has_the_interface_that_was_recorded() -> None:
    contract = recorded("prime_rl")
    for name in contract.callables:
        contract.check(name, getattr(CurriculumTaskSampler, name.removeprefix("TaskSampler.")))
    public = {name for name in vars(CurriculumTaskSampler) if not name.startswith("_")}
    assert {f"TaskSampler.{name}" for name in public | {"__next__"}} == set(contract.callables)


@pytest.mark.skipif(importlib.util.find_spec("prime_rl") is None, reason="needs prime-rl")
def test_prime_rl_has_the_interface_that_was_recorded() -> None:
    package = importlib.import_module("prime_rl.orchestrator.curriculum")
    names = [found.name for found in pkgutil.iter_modules(getattr(package, "__path__", []))]
    modules = [package, *(importlib.import_module(f"{package.__name__}.{name}") for name in names)]
    [theirs] = {vars(module)["TaskSampler"] for module in modules if "TaskSampler" in vars(module)}
    contract = recorded("prime_rl")
    for name in contract.callables:
        contract.check(name, getattr(theirs, name.removeprefix("TaskSampler.")))


def test_every_group_is_reported_and_measured(new_run, orchestrate, stats) -> None:
    run_id = new_run(64, selection=SELECTION)
    orchestrator = orchestrate(run_id)
    first, second, third, fourth = orchestrator.draw(4)
    assert first["answer"] == 2 * int(first["example_id"][1:])
    orchestrator.step = 5  # by when the groups come back; they began at step 0
    orchestrator.sampler.observe(group(third, [1, 0, 1, 0]))
    orchestrator.sampler.observe(group(first, [1, 1, 1, 1]))
    orchestrator.sampler.observe(group(fourth, [0, 0, 0, 0]))
    metrics = orchestrator.sampler.metrics()
    assert metrics.pop("curriculum/waited_s") > 0
    assert metrics == {
        "curriculum/group_count": 3,
        "curriculum/in_flight_count": 1,
        "curriculum/mixed_share": 1 / 3,
    }
    orchestrator.sampler.observe(group(second, [1, None, 0, 0]))
    assert "curriculum/mixed_share" not in orchestrator.sampler.metrics()
    seen = stats(run_id)
    assert (seen.attempt_count, seen.pass_count) == (15, 7)
    assert (seen.group_count, seen.mixed_group_count) == (3, 1)
    assert seen.policy_step == 0


def test_groups_may_be_objects_and_tasks_whatever_the_environment_knows(
    new_run, orchestrate, stats
) -> None:
    run_id = new_run(64, selection=SELECTION)
    orchestrator = orchestrate(run_id, to_task=lambda served: int(served.prompt_id[1:]))
    index = next(orchestrator.sampler)
    rollouts = [SimpleNamespace(example_id=f"p{index}", reward=float(k)) for k in (0, 1, 1, 1)]
    orchestrator.sampler.observe(SimpleNamespace(rollouts=rollouts))
    assert (stats(run_id).attempt_count, stats(run_id).pass_count) == (4, 3)


def test_groups_are_read_as_one_is_told(new_run, orchestrate, stats) -> None:
    run_id = new_run(64, selection=SELECTION)
    orchestrator = orchestrate(
        run_id, prompt_id_of=lambda group: group["id"], rewards_of=lambda group: group["scores"]
    )
    task = next(orchestrator.sampler)
    orchestrator.sampler.observe({"id": task["example_id"], "scores": [1, 0, 0, 0]})
    assert (stats(run_id).attempt_count, stats(run_id).pass_count) == (4, 1)


def test_a_group_of_no_task_in_flight_is_refused(new_run, orchestrate, stats) -> None:
    run_id = new_run(64, selection=SELECTION)
    orchestrator = orchestrate(run_id)
    task = next(orchestrator.sampler)
    with pytest.raises(InvalidRequestError, match="group: is of 'other': must be of a task in"):
        orchestrator.sampler.observe(group({"example_id": "other"}, [1, 0, 0, 0]))
    with pytest.raises(InvalidRequestError, match="a rollout, dict, has no example_id"):
        orchestrator.sampler.observe([{"reward": 1.0}])
    with pytest.raises(InvalidRequestError, match="a rollout, SimpleNamespace, has no reward"):
        orchestrator.sampler.observe([SimpleNamespace(example_id=task["example_id"])])
    orchestrator.sampler.observe(group(task, [1, 0, 0, 0]))
    with pytest.raises(InvalidRequestError, match="must be of a task in flight"):
        orchestrator.sampler.observe(group(task, [1, 0, 0, 0]))
    assert stats(run_id).attempt_count == 4


def test_a_prompt_whose_lease_ran_out_may_be_in_flight_twice() -> None:
    with FakeCurriculum(["1 + 1", "2 + 2"], GROUP_SIZE) as fake, fake.client() as client:
        orchestrator = Orchestrator(client, prompt_count=2)
        orchestrator.step = 7
        first = orchestrator.draw(2)
        assert fake.batches[0].policy_step == 7
        fake.expire_leases()
        second = orchestrator.draw(2)
        for task in [*first, *second]:
            orchestrator.sampler.observe(group(task, [1, 0, 1, 0]))
        assert fake.attempts == {"p0": 8, "p1": 8}
        orchestrator.feed.close()


def test_a_resumed_training_is_given_the_same_tasks(new_run, orchestrate, stats) -> None:
    run_id = new_run(64, selection=SELECTION)
    first = orchestrate(run_id)
    first.train(2)
    in_flight = first.draw(4)
    state = json.dumps(first.sampler.state_dict())
    for task in in_flight:
        first.sampler.observe(group(task, [1, 0, 1, 0]))
    first.step += 1
    given = [task["example_id"] for task in in_flight] + first.train(2)
    second = orchestrate(run_id)
    second.step = 2
    second.sampler.load_state_dict(json.loads(state))
    assert (stats(run_id).group_count, stats(run_id).timeline) == (8, 1)
    assert second.train(3) == given
    second.draw(2)
    second.sampler.load_state_dict(json.loads(state))
    assert second.sampler.metrics()["curriculum/in_flight_count"] == 0


def test_the_example_runs(new_run, server, stats) -> None:
    run_id = new_run(64, selection={"group_size": 8, "reach_attempt_factor": 1})
    variables = {"CURRICULUM_RUN": run_id, "CURRICULUM_SERVER": server.address}
    ended = subprocess.run(
        [sys.executable, EXAMPLE, "--steps", "3"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"step 3: .*'curriculum/mixed_share': 0\.\d+", ended.stdout)
    assert (stats(run_id).group_count, stats(run_id).leased_prompt_count) == (48, 0)
