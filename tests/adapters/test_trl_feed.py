"""CurriculumFeed over a real service, driven as GRPOTrainer drives it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import run_pb2
from curriculum_client import TrainerClient
from curriculum_client.adapters.trl import CurriculumFeed, Publish

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, datasets and transformers

PROMPTS_PER_STEP = 4
SELECTION = {"group_size": 2, "reach_attempt_factor": 1}


class Driver:
    """One training: its feed, and what the trainer does with it."""

    def __init__(
        self,
        client: TrainerClient,
        num_generations: int = 2,
        *,
        publish: Publish = False,
        **feed: Any,
    ) -> None:
        self.feed = CurriculumFeed(client, **feed)
        arguments = self.feed.arguments(as_floats, publish=publish)
        self.rows, self.reward = arguments["train_dataset"], arguments["reward_funcs"]
        [self.callback] = arguments["callbacks"]
        self.num_generations = num_generations
        self.state = SimpleNamespace(
            global_step=0, is_world_process_zero=True, stateful_callbacks={}
        )

    def begin(self, **changes: Any) -> Iterator[dict[str, Any]]:
        """Starts training, and gives the rows of its dataset."""
        arguments = {
            "shuffle_dataset": False,
            "remove_unused_columns": False,
            "ignore_data_skip": False,
            "num_generations": self.num_generations,
            "generation_batch_size": PROMPTS_PER_STEP * self.num_generations,
        }
        args: Any = SimpleNamespace(**(arguments | changes))
        self.callback.on_train_begin(args, self.state, None)  # type: ignore[arg-type]
        return iter(self.rows)

    def score(self, rows: list[dict[str, Any]], rewards: list[Any]) -> list[Any]:
        """Scores each row's generations, of which completion k gets rewards[k]."""
        repeated = [row for row in rows for _ in range(self.num_generations)]
        columns = {name: [row[name] for row in repeated] for name in rows[0]}
        return self.reward(
            completions=rewards,
            completion_ids=[[1, 2, 3]] * len(repeated),
            trainer_state=self.state,
            **columns,
        )

    def end_step(self, *, should_save: bool = False) -> None:
        self.state.global_step += 1
        control: Any = SimpleNamespace(should_save=should_save)
        self.callback.on_step_end(None, self.state, control)  # type: ignore[arg-type]

    def save(self, output_dir: str = "", save_total_limit: int | None = None) -> None:
        args: Any = SimpleNamespace(output_dir=output_dir, save_total_limit=save_total_limit)
        self.callback.on_save(args, self.state, None)  # type: ignore[arg-type]

    def end(self) -> None:
        self.callback.on_train_end(None, self.state, None)  # type: ignore[arg-type]


def as_floats(completions: list[Any], **_: Any) -> list[float]:
    return [float(completion) for completion in completions]


@pytest.fixture
def leased_besides_next(stats: Any) -> Callable[[Iterator[Any], str], int]:
    """Prompts still held, apart from those of the next batch, which may be asked for already."""

    def count(rows: Iterator[Any], run_id: str) -> int:
        take(rows, PROMPTS_PER_STEP)
        return stats(run_id).leased_prompt_count - PROMPTS_PER_STEP

    return count


@pytest.fixture
def connect(server: Any) -> Iterator[Callable[..., TrainerClient]]:
    clients: list[TrainerClient] = []

    def connect(run_id: str) -> TrainerClient:
        clients.append(TrainerClient(server.address, run_id=run_id))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def take(rows: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [next(rows) for _ in range(count)]


def test_rows_carry_the_prompt_and_the_rewards_come_back(
    new_run, connect, stats, leased_besides_next
) -> None:
    run_id = new_run(64, selection=SELECTION)
    driver = Driver(connect(run_id))
    rows = driver.begin()
    batch = take(rows, PROMPTS_PER_STEP)
    assert all(row["prompt"].startswith("What is ") for row in batch)
    assert all(row["payload"]["answer"] == 2 * int(row["prompt_id"][1:]) for row in batch)
    assert driver.score(batch, [1, 0, 1, 0, 1, 1, 0, 0]) == [1, 0, 1, 0, 1, 1, 0, 0]
    driver.end_step()
    seen = stats(run_id)
    assert (seen.attempt_count, seen.pass_count) == (8, 4)
    assert (seen.group_count, seen.mixed_group_count) == (4, 2)
    assert leased_besides_next(rows, run_id) == 0
    assert len(driver.feed.service_time_s) == 1
    assert driver.feed.service_time_s[0] > 0


def test_what_was_fetched_ahead_is_given_back_at_the_end(new_run, connect, stats) -> None:
    run_id = new_run(64, selection=SELECTION)
    driver = Driver(connect(run_id))
    take(driver.begin(), PROMPTS_PER_STEP + 1)
    assert stats(run_id).leased_prompt_count == 2 * PROMPTS_PER_STEP
    driver.end()
    assert stats(run_id).leased_prompt_count == 0


def test_rows_of_two_batches_may_be_scored_together(new_run, connect, stats) -> None:
    run_id = new_run(64, selection=SELECTION)
    driver = Driver(connect(run_id))
    driver.score(take(driver.begin(), 2 * PROMPTS_PER_STEP), [1, 0] * 2 * PROMPTS_PER_STEP)
    assert stats(run_id).mixed_group_count == 2 * PROMPTS_PER_STEP


def test_evaluation_rows_are_scored_and_not_reported(new_run, connect, stats) -> None:
    run_id = new_run(64, selection=SELECTION)
    driver = Driver(connect(run_id))
    driver.begin()
    assert driver.score([{"prompt": "1 + 1"}], [1, 0]) == [1, 0]
    assert stats(run_id).attempt_count == 0


def test_a_completion_without_a_reward_is_not_reported(
    new_run, connect, stats, leased_besides_next
) -> None:
    run_id = new_run(64, selection=SELECTION)
    driver = Driver(connect(run_id))
    rows = driver.begin()
    batch = take(rows, PROMPTS_PER_STEP)
    scored = driver.feed.reward(lambda completions, **_: completions)
    driver.reward = scored
    driver.score(batch, [None, 1, *[0] * 6])
    assert stats(run_id).attempt_count == 7
    assert leased_besides_next(rows, run_id) == 0


GRADED = {
    "selection": SELECTION,
    "channels": [run_pb2.Channel(name="style", min_value=0, max_value=10)],
    "objective": {"reward": 0.5, "style": 0.5},
}


def test_channels_are_reported_with_the_rewards(
    new_run, connect, stats, leased_besides_next
) -> None:
    run_id = new_run(64, **GRADED)
    driver = Driver(connect(run_id))
    rows = driver.begin()
    batch = take(rows, PROMPTS_PER_STEP)
    driver.reward = driver.feed.reward(
        lambda completions, **_: [float(reward) for reward, _ in completions],
        channels={"style": lambda completions, **_: [style for _, style in completions]},
    )
    # Equal in both; in the reward alone; in the style alone; and one that has no style.
    attempts = [(1, 5), (1, 5), (1, 5), (0, 5), (0, 5), (0, 6), (1, 5), (0, None)]
    assert driver.score(batch, attempts) == [1, 1, 1, 0, 0, 0, 1, 0]
    seen = stats(run_id)
    assert (seen.attempt_count, seen.pass_count) == (7, 4)
    assert (seen.group_count, seen.mixed_group_count) == (3, 2)
    assert leased_besides_next(rows, run_id) == 0
    assert driver.score([{"prompt": "1 + 1"}], [(1, 0), (0, 0)]) == [1, 0]  # an evaluation


def test_a_channel_that_the_objective_needs_is_asked_for_by_name(new_run, connect, stats) -> None:
    run_id = new_run(64, **GRADED)
    driver = Driver(connect(run_id))
    batch = take(driver.begin(), PROMPTS_PER_STEP)
    with pytest.raises(InvalidRequestError, match=r"channels\[style\]: must be there"):
        driver.score(batch, [1, 0] * PROMPTS_PER_STEP)
    assert stats(run_id).attempt_count == 0


def test_attempts_beyond_num_generations_are_given_back(
    new_run, connect, stats, leased_besides_next
) -> None:
    run_id = new_run(64, selection={"group_size": 4, "reach_attempt_factor": 1})
    driver = Driver(connect(run_id))
    rows = driver.begin()
    driver.score(take(rows, PROMPTS_PER_STEP), [1, 0] * PROMPTS_PER_STEP)
    assert stats(run_id).attempt_count == 2 * PROMPTS_PER_STEP
    assert leased_besides_next(rows, run_id) == 0


def test_fewer_attempts_than_num_generations_are_refused(new_run, connect, stats) -> None:
    run_id = new_run(64, selection=SELECTION)
    driver = Driver(connect(run_id), num_generations=4)
    with pytest.raises(
        InvalidRequestError, match=r"attempts_per_prompt=4: .* is to get 2; .* group_size must be 4"
    ):
        next(driver.begin())
    assert stats(run_id).leased_prompt_count == 0


def test_a_feed_whose_callback_was_forgotten_says_so(new_run, connect) -> None:
    driver = Driver(connect(new_run(64)))
    with pytest.raises(StateError, match=r"callbacks"):
        next(iter(driver.rows))


def test_settings_that_would_lose_prompts_are_refused(new_run, connect) -> None:
    driver = Driver(connect(new_run(64)))
    with pytest.raises(InvalidRequestError, match="shuffle_dataset=True: must be False"):
        driver.begin(shuffle_dataset=True)
    with pytest.raises(InvalidRequestError, match="remove_unused_columns=True: must be False"):
        driver.begin(remove_unused_columns=True)
    driver.state.global_step = 10
    with pytest.raises(InvalidRequestError, match="ignore_data_skip=False: must be True"):
        driver.begin()


async def later(**_: Any) -> list[float]:
    return []


@pytest.mark.parametrize("score", [later, "a-model", torch.nn.Linear(1, 1)])
def test_only_plain_functions_are_wrapped(new_run, connect, score: Any) -> None:
    with pytest.raises(InvalidRequestError, match="must be a plain function"):
        CurriculumFeed(connect(new_run(0))).reward(score)


def test_a_trl_that_takes_no_stream_is_named(new_run, connect, monkeypatch) -> None:
    monkeypatch.setattr("trl.__version__", "1.8.1")
    with pytest.raises(StateError, match=r"trl==1\.8\.1: .* use CurriculumGRPOTrainer"):
        CurriculumFeed(connect(new_run(0))).dataset()


def test_an_empty_pool_ends_training_with_the_reason(new_run, connect, monkeypatch) -> None:
    monkeypatch.setattr("curriculum_client._feed.EMPTY_POOL_WAIT_S", 0.0)
    driver = Driver(connect(new_run(0)))
    with pytest.raises(StateError, match="nothing to serve"):
        next(driver.begin())


def test_a_resumed_training_rolls_the_curriculum_back(new_run, connect, stats) -> None:
    run_id = new_run(64, selection=SELECTION)
    first = Driver(connect(run_id))
    rows = first.begin()
    for step in range(3):
        first.score(take(rows, PROMPTS_PER_STEP), [1, 0] * PROMPTS_PER_STEP)
        first.end_step()
        if step == 1:
            first.save()
            saved = json.dumps(first.state.stateful_callbacks)
    assert stats(run_id).group_count == 3 * PROMPTS_PER_STEP
    second = Driver(connect(run_id))
    second.state.global_step = 2
    second.state.stateful_callbacks = json.loads(saved)
    rows = second.begin(ignore_data_skip=True)
    assert stats(run_id).group_count == 2 * PROMPTS_PER_STEP
    assert stats(run_id).timeline == first.feed.client.timeline + 1
    second.score(take(rows, PROMPTS_PER_STEP), [1, 0] * PROMPTS_PER_STEP)
    assert stats(run_id).group_count == 3 * PROMPTS_PER_STEP


def test_the_mark_is_there_before_the_weights_are(new_run, connect) -> None:
    run_id = new_run(64, selection=SELECTION)
    driver = Driver(connect(run_id))
    driver.score(take(driver.begin(), PROMPTS_PER_STEP), [1, 0] * PROMPTS_PER_STEP)
    driver.end_step(should_save=True)  # and the process ends amid saving
    assert connect(run_id).rollback("step-1") == 1


def test_a_resumed_training_gets_the_batches_that_were_fetched_ahead(new_run, connect) -> None:
    run_id = new_run(64, selection=SELECTION)

    states: list[str] = []

    def play(driver, rows, batch, steps):
        served = []
        for _ in range(steps):
            ahead = take(rows, PROMPTS_PER_STEP)  # as TRL fetches before it scores
            driver.score(batch, [1, 0] * PROMPTS_PER_STEP)
            driver.end_step()
            served.append([row["prompt_id"] for row in batch])
            batch = ahead
            if driver.state.global_step == 3:
                driver.save()
                states.append(json.dumps(driver.state.stateful_callbacks))
        return served

    first = Driver(connect(run_id))
    rows = first.begin()
    served = play(first, rows, take(rows, PROMPTS_PER_STEP), 6)
    second = Driver(connect(run_id))
    second.state.global_step = 3
    second.state.stateful_callbacks = json.loads(states[0])
    rows = second.begin(ignore_data_skip=True)
    assert play(second, rows, take(rows, PROMPTS_PER_STEP), 3) == served[3:]


def test_marks_go_with_the_checkpoints_that_trl_deletes(new_run, connect, stubs, tmp_path) -> None:
    run_id = new_run(64, selection=SELECTION)
    driver = Driver(connect(run_id))
    rows = driver.begin()
    for step in range(1, 4):
        driver.score(take(rows, PROMPTS_PER_STEP), [1, 0] * PROMPTS_PER_STEP)
        driver.end_step()
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step == 3:
            (tmp_path / "checkpoint-1").rmdir()
        driver.save(str(tmp_path), save_total_limit=2)
    run = stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run
    assert [mark.name for mark in run.checkpoints] == ["step-2", "step-3"]


def test_a_checkpoint_of_a_training_without_the_curriculum_is_named(new_run, connect) -> None:
    driver = Driver(connect(new_run(64)))
    driver.state.global_step = 2
    with pytest.raises(StateError, match=r"has no CurriculumFeed; .*callback\(checkpoint=False\)"):
        driver.begin(ignore_data_skip=True)


def test_what_is_published_may_be_made_from_the_folder(new_run, connect, stubs, tmp_path) -> None:
    run_id = new_run(64)
    driver = Driver(connect(run_id), publish=lambda folder: f"s3://weights/{folder.name}")
    driver.state.global_step = 3
    driver.save(str(tmp_path))
    policy = stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run.policy
    assert (policy.policy_step, policy.uri) == (3, "s3://weights/checkpoint-3")


def test_a_folder_without_whole_weights_is_not_published(new_run, connect, stubs, tmp_path) -> None:
    run_id = new_run(64)
    driver = Driver(connect(run_id), publish=True)
    driver.state.global_step = 3
    with pytest.raises(StateError, match=r"checkpoint-3 has no model\.safetensors"):
        driver.save(str(tmp_path))
    assert not stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run.HasField("policy")


def test_other_ranks_than_the_first_neither_mark_nor_publish(new_run, connect, stubs) -> None:
    run_id = new_run(64)
    driver = Driver(connect(run_id), publish=str)
    driver.state.is_world_process_zero = False
    driver.save()
    run = stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run
    assert not run.checkpoints
    assert not run.HasField("policy")


def test_prompts_may_be_made_into_messages(new_run, connect) -> None:
    run_id = new_run(64, selection=SELECTION)
    driver = Driver(connect(run_id), to_prompt=as_messages)
    row = next(driver.begin())
    assert row["prompt"][0]["content"].startswith("What is ")


def test_a_feed_pickles(new_run, connect) -> None:
    feed = Driver(connect(new_run(64))).feed
    assert pickle.loads(pickle.dumps(feed)).service_time_s == []


def as_messages(served: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": served.text}]
