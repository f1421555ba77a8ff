"""CurriculumGRPOTrainer: what it reports of which rewards, and what it does in a dry pool."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_api.v1 import run_pb2
from curriculum_client import TrainerClient
from curriculum_client.adapters.trl import CurriculumGRPOTrainer, CurriculumMixin
from curriculum_client.testing import FakeCurriculum
from tests.adapters.trl_job import (
    GROUP_SIZE,
    JUST_IN_TIME,
    PROMPTS_PER_STEP,
    SELECTION,
    STEPS,
    Recorder,
    grpo_config,
    tiny_model,
    train,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def fake() -> Iterator[FakeCurriculum]:
    prompts = [
        {"text": f"What is {i} + {i}?", "payload": {"answer": 2 * i}, "prompt_id": f"p{i}"}
        for i in range(32)
    ]
    with FakeCurriculum(prompts, group_size=GROUP_SIZE) as fake:
        yield fake


def by_prompt(prompt_id: list[str] | None = None, **columns: Any) -> list[float]:
    """A tenth of the prompt's last digit."""
    return [int(name[-1]) / 10 for name in prompt_id or ["0"] * len(columns["completion_ids"])]


async def only_even(completion_ids: list[Any], prompt_id: Any = None, **_: Any) -> list[Any]:
    """1 for prompts of even numbers, and nothing for others."""
    return [
        None if int(name[1:]) % 2 else 1.0 for name in prompt_id or ["p1"] * len(completion_ids)
    ]


def nobody(completion_ids: list[Any], **_: Any) -> list[None]:
    return [None] * len(completion_ids)


def test_several_rewards_are_reported_as_trl_adds_them_up(fake: Any, tmp_path: Path) -> None:
    with fake.client() as client:
        score = [by_prompt, only_even]
        train(JUST_IN_TIME, client, score, tmp_path, reward_weights=[0.5, 0.3])
    assert len(fake.rewards) == STEPS * PROMPTS_PER_STEP
    for prompt_id, rewards in fake.rewards.items():
        number = int(prompt_id[1:])
        expected = 0.5 * (number % 10) / 10 + (0.0 if number % 2 else 0.3)
        assert rewards == pytest.approx([expected] * GROUP_SIZE, abs=1e-6)


def test_a_sum_of_one_reaches_a_threshold_of_one(fake: Any, tmp_path: Path) -> None:
    """As float32, these weights add up to 0.99999994."""
    ones = [named(f"one{k}", 1.0) for k in range(3)]
    with fake.client() as client:
        train(JUST_IN_TIME, client, ones, tmp_path, reward_weights=[0.01, 0.21, 0.78])
    assert {reward for row in fake.rewards.values() for reward in row} == {1.0}


def named(name: str, value: float) -> Any:
    def score(completion_ids: list[Any], **_: Any) -> list[float]:
        return [value] * len(completion_ids)

    score.__name__ = name
    return score


def test_what_nobody_scored_is_not_reported_and_given_back(fake: Any, tmp_path: Path) -> None:
    with fake.client() as client:
        train(JUST_IN_TIME, client, [only_even, nobody], tmp_path)
    assert fake.rewards
    assert all(int(prompt_id[1:]) % 2 == 0 for prompt_id in fake.rewards)
    assert not fake.unreported


def test_channels_are_reward_functions_by_their_names(
    server: Any, new_run: Any, stats: Any, tmp_path: Path
) -> None:
    run_id = new_run(
        64,
        selection=SELECTION,
        channels=[run_pb2.Channel(name="style", min_value=0, max_value=10)],
        objective={"reward": 0.5, "style": 0.5},
    )
    with TrainerClient(server.address, run_id=run_id) as client:
        score = [named("right", 1.0), named("style", 7.0)]
        options = {"channels": ["style"]}
        train(JUST_IN_TIME, client, score, tmp_path, reward_weights=[1, 0], options=options)
    seen = stats(run_id)
    assert seen.attempt_count == seen.pass_count == STEPS * PROMPTS_PER_STEP * GROUP_SIZE


def test_a_batch_of_a_dry_pool_is_completed_with_the_next(
    server: Any, new_run: Any, stats: Any, tmp_path: Path, wait_until: Any
) -> None:
    """Of 8 prompts another trainer holds 6, until this one has taken the 2 that are left."""
    run_id = new_run(8, selection=SELECTION)
    other = TrainerClient(server.address, run_id=run_id, consumer="other")
    held = other.next_batch(6, policy_step=0)

    def release() -> None:
        wait_until(lambda: stats(run_id).leased_prompt_count == 8)
        other.release(held)

    releasing = threading.Thread(target=release)
    releasing.start()
    recorder = Recorder()
    with other, TrainerClient(server.address, run_id=run_id) as client:
        train(JUST_IN_TIME, client, recorder, tmp_path)
    releasing.join()
    for prompt_ids in recorder.scored.values():
        groups = [prompt_ids[first : first + GROUP_SIZE] for first in range(0, 6, GROUP_SIZE)]
        assert all(len(set(group)) == 1 for group in groups)
    attempt_count = STEPS * PROMPTS_PER_STEP * GROUP_SIZE
    assert len(recorder.attempts) == stats(run_id).attempt_count == attempt_count
    assert stats(run_id).leased_prompt_count == 0


def test_a_pool_smaller_than_a_batch_ends_training_with_the_reason(
    server: Any, new_run: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("curriculum_client._feed.EMPTY_POOL_WAIT_S", 0.0)
    run_id = new_run(PROMPTS_PER_STEP - 1, selection=SELECTION)
    with (
        TrainerClient(server.address, run_id=run_id) as client,
        pytest.raises(StateError, match="nothing to serve"),
    ):
        train(JUST_IN_TIME, client, Recorder(), tmp_path)


def test_the_mixin_makes_other_trainers_ask_as_well(fake: Any, tmp_path: Path) -> None:
    class CurriculumRLOOTrainer(CurriculumMixin, RLOOTrainer):  # type: ignore[misc]
        pass

    model, tokenizer = tiny_model()
    with fake.client() as client:
        CurriculumRLOOTrainer(
            model,
            by_prompt,
            RLOOConfig(
                str(tmp_path),
                max_steps=2,
                per_device_train_batch_size=PROMPTS_PER_STEP * GROUP_SIZE,
                num_generations=GROUP_SIZE,
                max_completion_length=6,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                beta=0.0,
            ),
            curriculum=client,
            processing_class=tokenizer,
        ).train()
    assert sum(fake.attempts.values()) == 2 * PROMPTS_PER_STEP * GROUP_SIZE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_dataset": [1]}, "train_dataset: must be left out"),
        ({"args": None}, r"args\.max_steps=-1: must be at least 1"),
        ({"channels": ["style"]}, r"channels: 'style': must be of reward_funcs, \['by_prompt'\]"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    fake: Any, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    model, tokenizer = tiny_model()
    right = {"reward_funcs": by_prompt, "args": grpo_config(tmp_path, eval_strategy="no")}
    with fake.client() as client, pytest.raises(InvalidRequestError, match=message):
        CurriculumGRPOTrainer(
            model, curriculum=client, processing_class=tokenizer, **(right | wrong)
        )


def test_it_is_a_grpo_trainer() -> None:
    assert issubclass(CurriculumGRPOTrainer, GRPOTrainer)
