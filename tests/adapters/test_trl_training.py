"""The real GRPOTrainer, a few steps long, on the stream of what a real service serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curriculum_client.testing import FakeCurriculum
from tests.adapters import trl_checks as checks
from tests.adapters.trl_job import GROUP_SIZE, STEPS, STREAM, Recorder, train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def world(server: Any, new_run: Any, tmp_path: Path) -> checks.World:
    return checks.make_world(STREAM, server, new_run, tmp_path)


def test_every_rollout_is_counted_once_and_evaluations_are_not(world: checks.World) -> None:
    checks.check_plain_training(world)


def test_a_trainer_that_crashed_in_a_step_gets_the_same_prompts_when_it_resumes(
    world: checks.World,
) -> None:
    checks.check_resumed_after_crash(world)


@pytest.mark.parametrize(("settings", "generations"), checks.ACCUMULATIONS)
def test_generations_of_other_sizes_than_steps_are_counted_once(
    world: checks.World, settings: dict[str, int], generations: dict[int, int]
) -> None:
    checks.check_accumulation(world, settings, generations)


@pytest.mark.adapter
def test_two_ranks_share_each_batch_and_get_the_same_ones_when_they_resume(
    world: checks.World,
) -> None:
    checks.check_two_ranks(world)


def test_the_weights_of_a_checkpoint_are_published_on_request(world: checks.World) -> None:
    checks.check_publishing(world)


def test_reports_come_before_the_choice_that_they_inform(tmp_path: Path) -> None:
    """TRL begins with two batches; from then on it is one ahead."""
    texts = [f"What is {i} + {i}?" for i in range(32)]
    prompts = [{"text": text, "payload": {"answer": 2 * i}} for i, text in enumerate(texts)]
    with FakeCurriculum(prompts, group_size=GROUP_SIZE) as fake, fake.client() as client:
        train(STREAM, client, Recorder(), tmp_path, save_strategy="no")
    steps = ["ReportOutcomes", "NextBatch"] * STEPS
    releases = ["ReleaseBatch"] * 2
    assert [name for name, _ in fake.calls] == ["NextBatch", "NextBatch", *steps, *releases]
    assert [batch.policy_step for batch in fake.batches] == [0, 0, 0, 1, 2, 3]
    assert not fake.unreported
