"""The adapter of OpenRLHF: on its own, and in trainings with OpenRLHF's arguments on Ray."""

from __future__ import annotations

import json
import os
import pickle
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curriculum_client import Feed, InvalidRequestError
from curriculum_client.adapters import openrlhf
from curriculum_client.testing import FakeCurriculum
from tests.adapters.contract import recorded

CONTRACT = recorded("openrlhf")
HERE = Path(__file__).parent
BATCH, GROUP = 4, 4
REWARD = """
import torch

def reward_func(queries, prompts, labels):
    [query], [prompt], [label] = queries, prompts, labels
    reward = torch.tensor([float(query.replace(" ", "") == prompt + label)])
    return {"rewards": reward, "scores": reward}
"""


@pytest.fixture
def fake() -> Iterator[FakeCurriculum]:
    prompts = [{"text": f"{i}+{i}=?", "payload": {"answer": 2 * i}} for i in range(40)]
    with FakeCurriculum(prompts, group_size=GROUP) as fake:
        yield fake


@pytest.fixture
def make_prompts(fake: FakeCurriculum) -> Iterator[Callable[..., openrlhf.Prompts]]:
    with fake.client() as client, Feed(client, BATCH, attempts_per_prompt=GROUP) as feed:

        def make(max_samples: int = 20, save_steps: float = 2) -> openrlhf.Prompts:
            args = SimpleNamespace(
                data=SimpleNamespace(max_samples=max_samples),
                ckpt=SimpleNamespace(save_steps=save_steps),
                eval=SimpleNamespace(steps=float("inf")),
            )
            return openrlhf.Prompts(feed, args, None)

        yield make


def test_our_functions_are_called_as_openrlhf_calls_its_own() -> None:
    generator = "openrlhf.trainer.ppo_utils.samples_generator.SamplesGenerator"
    CONTRACT.check(f"{generator}.generate_samples", openrlhf.Reporting.generate_samples)
    name = "_process_response_into_experience"
    CONTRACT.check(f"{generator}.{name}", getattr(openrlhf.Reporting, name))
    for trainer in ("ppo_trainer", "ppo_trainer_async"):
        CONTRACT.check(f"openrlhf.trainer.{trainer}.prepare_datasets", openrlhf.prepare_datasets)


def test_a_label_is_its_text_and_keeps_its_lease_on_the_way() -> None:
    label = pickle.loads(pickle.dumps(openrlhf.Label("42", "0.1.batch-7")))
    assert (label, label.lease) == ("42", "0.1.batch-7")
    assert json.dumps(label) == '"42"'


def test_an_episode_needs_an_end(make_prompts: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"data\.max_samples=100000000: must be"):
        make_prompts(max_samples=10**8)


def test_steps_that_are_saved_are_marked(fake: FakeCurriculum, make_prompts: Any) -> None:
    prompts = make_prompts(save_steps=2)
    states = []
    for prompts.policy_step in range(1, 5):
        states.append(prompts.state_dict())
    assert [state.get("mark") for state in states] == [None, "step-2", "step-2", "step-4"]
    assert [name for name, _ in fake.calls] == ["Checkpoint"] * 2


# What follows runs OpenRLHF itself.


@pytest.fixture
def train(fake: FakeCurriculum, tmp_path: Path) -> Callable[..., str]:
    """Trains in a new process; what it printed."""
    (tmp_path / "reward.py").write_text(REWARD)
    environment = {
        **os.environ,
        "CURRICULUM_RUN": fake.run_id,
        "CURRICULUM_SERVER": fake.target,
        "PYTHONPATH": str(HERE / "stand_ins"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }

    def train(*arguments: str, prompt_count: int = 3 * BATCH) -> str:
        given = {
            "actor.model_name_or_path": tmp_path / "model",
            "reward.remote_url": tmp_path / "reward.py",
            "ckpt.path": tmp_path / "checkpoints",
            "data.label_key": "answer",
            "data.max_samples": prompt_count,
            "rollout.batch_size": BATCH,
            "rollout.n_samples_per_prompt": GROUP,
            "rollout.micro_batch_size": 1,
            "train.batch_size": BATCH * GROUP,
            "vllm.num_engines": 2,
            "algo.kl.init_coef": 0,
            "algo.advantage.estimator": "group_norm",
        }
        command = [sys.executable, HERE / "openrlhf_job.py", tmp_path]
        for name, value in given.items():
            command += [f"--{name}", str(value)]
        done = subprocess.run(
            [*command, *arguments],
            env=environment,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert not done.returncode, done.stdout[-5000:]
        return done.stdout

    return train


def learnt(folder: Path) -> list[list[str]]:
    """The leases of each step's samples."""
    return [json.loads(line)["leases"] for line in (folder / "learnt.jsonl").open()]


def expected(prompt_id: str) -> int:
    """How many of a prompt's attempts the stand-in for vLLM gets right."""
    return [2, 2, 4, 0][int(prompt_id[1:]) % 4]


@pytest.mark.adapter
def test_openrlhf_is_as_it_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE / "stand_ins")
    for name in CONTRACT.callables:
        CONTRACT.check(name, pkgutil.resolve_name(name))


@pytest.mark.adapter
def test_every_group_counts_that_dynamic_filtering_drops(
    fake: FakeCurriculum, train: Any, tmp_path: Path
) -> None:
    (tmp_path / "held_out.jsonl").write_text('{"input": "50+50=?", "answer": "100"}\n')
    said = train(
        "--algo.dynamic_filtering_enable",
        *("--eval.dataset", str(tmp_path / "held_out.jsonl"), "--eval.steps", "1"),
        prompt_count=5 * BATCH,
    )
    assert "Evaluation completed" in said
    assert len(fake.rewards) == 5 * BATCH  # and so not the one held out
    for prompt_id, rewards in fake.rewards.items():
        assert (len(rewards), sum(rewards)) == (GROUP, expected(prompt_id))
    served = {prompt.lease: prompt.prompt_id for batch in fake.batches for prompt in batch}
    trained = Counter(served[lease] for leases in learnt(tmp_path) for lease in leases)
    mixed = {prompt_id for prompt_id in fake.rewards if expected(prompt_id) == 2}
    assert trained == dict.fromkeys(mixed, GROUP)


@pytest.mark.adapter
def test_a_resumed_training_is_given_what_the_lost_one_was(
    fake: FakeCurriculum, train: Any, tmp_path: Path
) -> None:
    train("--ckpt.save_steps", "2")  # saves its second step of three
    lost = {prompt.prompt_id for prompt in fake.batches[2]}
    train("--ckpt.save_steps", "2", "--ckpt.load_enable")
    assert [name for name, _ in fake.calls].count("Rollback") == 1
    steps = learnt(tmp_path)
    assert len(steps) == 4
    served = {prompt.lease: prompt.prompt_id for batch in fake.batches for prompt in batch}
    assert {served[lease] for lease in steps[3]} == lost
    assert Counter(fake.attempts.values()) == {GROUP: 3 * BATCH}


@pytest.mark.adapter
def test_asynchronous_trainings_learn_the_same(
    fake: FakeCurriculum, train: Any, tmp_path: Path
) -> None:
    train("--train.async_enable", "--train.num_episodes", "2")
    assert [len(leases) for leases in learnt(tmp_path)] == [BATCH * GROUP] * 6
    assert len(fake.rewards) == 6 * BATCH
    for prompt_id, rewards in fake.rewards.items():
        assert (len(rewards), sum(rewards)) == (GROUP, expected(prompt_id))


@pytest.mark.adapter
def test_a_label_that_prompts_lack_is_named(train: Any) -> None:
    with pytest.raises(AssertionError, match=r"data\.label_key='gold': must be in the payload of"):
        train("--data.label_key", "gold")
