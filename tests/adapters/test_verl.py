"""The adapter of verl 0.9 in verl's own training loop, over a real service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import run_pb2
from curriculum_client.adapters import verl as adapter
from curriculum_client.adapters._verl_dataset import Shared
from tests.adapters import verl_world as world
from tests.adapters.verl_config import BATCH, GROUP, SELECTION, compose, small_training

pytestmark = [
    pytest.mark.adapter,
    pytest.mark.filterwarnings("ignore"),  # of verl, ray and torch
]


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    return small_training(tmp_path_factory.mktemp("verl"))


@pytest.fixture(scope="module")
def actors(configure: Any) -> Iterator[world.Actors]:
    # Workers cannot import it: verl itself installs a package `tests`.
    ray.cloudpickle.register_pickle_by_value(world)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # TransferQueue waits for ever where Ray has fewer CPUs than it wants.
        ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
        transfer_queue.init(compose().transfer_queue)
        yield world.Actors.start(configure())
        transfer_queue.close()
        ray.shutdown()


@pytest.fixture(autouse=True)
def nothing_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the beginning of a process."""
    for name in ("trainer_mode", "feed"):
        monkeypatch.setattr(Shared, name, None)


@pytest.fixture
def begin(
    actors: world.Actors, configure: Any, use: Any, wait_until: Any, tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """A trainer that is ready to fit, once nothing is left of the one before."""

    def begin(run_id: str, steps: int, *changes: str, kind: Any = world.SyncTrainer) -> Any:
        end()
        use(run_id)
        config = configure(
            f"trainer.total_training_steps={steps}",
            f"trainer.default_local_dir={tmp_path}",
            *changes,
        )
        OmegaConf.resolve(config)  # as verl does first
        trainer = kind(config)
        trainer.replay_buffer.poll_interval = 0.05
        trainer.actors = actors
        trainer.init()
        return trainer

    def is_at_rest() -> bool:
        tags = (transfer_queue.kv_list() or {}).get("train", {}).values()
        return not any(tag.get("status") in ("pending", "running") for tag in tags)

    def end() -> None:
        wait_until(is_at_rest)
        for partition, keys in (transfer_queue.kv_list() or {}).items():
            if keys:
                transfer_queue.kv_clear(list(keys), partition)

    ray.get(actors.engine.reset.remote())
    yield begin
    end()


FILTER = [
    "algorithm.filter_groups.enable=True",
    "algorithm.filter_groups.metric=score",
    "+trainer.v1.sampler.sampler_kwargs.filter_groups_metric='${algorithm.filter_groups.metric}'",
]
MODES = {"sync": world.SyncTrainer, "colocate_async": world.AsyncTrainer}


def test_training_reports_each_attempt_once(new_run, begin, actors, stats) -> None:
    run_id = new_run(60, selection=SELECTION)
    trainer = begin(run_id, 3)
    trainer.fit(actors.loops)
    made, seen = actors.attempt_counts(), stats(run_id)
    assert [len(step) for step in trainer.trained] == [BATCH * GROUP] * 3
    assert seen.attempt_count == sum(made.values()) == 3 * BATCH * GROUP
    assert seen.pass_count == sum(made[i] // (1 + (i % 3 == 2)) for i in made if i % 3 != 1)
    assert seen.group_count == 3 * BATCH
    assert seen.mixed_group_count == sum(i % 3 == 2 for i in made)


@pytest.mark.parametrize("mode", MODES)
def test_attempts_are_of_the_weights_that_made_them(new_run, begin, actors, stubs, mode) -> None:
    run_id = new_run(60, selection=SELECTION, window_steps=1)
    trainer = begin(run_id, 3, f"trainer.v1.trainer_mode={mode}", kind=MODES[mode])
    trainer.fit(actors.loops)
    prompt_ids = [prompt_id for step in trainer.trained for prompt_id in step]
    for prompt_id, tag in zip(prompt_ids, trainer.tags, strict=True):
        request = op.GetPromptRequest(run_id=run_id, prompt_id=prompt_id)
        steps = [point.first_policy_step for point in stubs.operator.GetPrompt(request).history]
        assert tag["max_global_steps"] in steps
    assert {0} < {tag["max_global_steps"] for tag in trainer.tags} <= {0, 1, 2}


def test_evaluation_uses_verls_own_files_and_is_not_reported(new_run, begin, actors, stats) -> None:
    run_id = new_run(60, selection=SELECTION)
    trainer = begin(run_id, 1, "trainer.val_only=True", "trainer.val_before_train=True")
    assert len(trainer.val_dataset) == 2
    trainer.fit(actors.loops)
    assert actors.attempt_counts() == {3: 2}
    assert stats(run_id).attempt_count == stats(run_id).leased_prompt_count == 0


def test_the_service_decides_how_many_attempts_each_prompt_gets(
    new_run, begin, actors, stats
) -> None:
    run_id = new_run(60, selection=SELECTION)
    trainer = begin(run_id, 4, f"+data.curriculum.rollout_budget={BATCH * GROUP + 3}")
    trainer.fit(actors.loops)
    made = actors.attempt_counts()
    assert len({*made.values()}) > 1
    assert stats(run_id).attempt_count == sum(made.values()) == sum(map(len, trainer.trained))
    assert stats(run_id).group_count == len(made)


@pytest.mark.parametrize("mode", MODES)
def test_groups_that_verl_filters_are_reported(new_run, begin, actors, stats, mode) -> None:
    run_id = new_run(240, selection=SELECTION)
    trainer = begin(run_id, 2, *FILTER, f"trainer.v1.trainer_mode={mode}", kind=MODES[mode])
    trainer.fit(actors.loops)
    trained = {prompt_id for step in trainer.trained for prompt_id in step}
    made, seen = actors.attempt_counts(), stats(run_id)
    assert all(int(prompt_id[1:]) % 3 == 2 for prompt_id in trained)
    assert seen.group_count > len(trained) == 2 * BATCH
    assert seen.pass_count < seen.attempt_count <= sum(made.values())
    assert seen.mixed_group_count < seen.group_count
    if mode == "sync":  # nothing is in flight at the end
        assert seen.attempt_count == sum(made.values())
        assert seen.mixed_group_count == sum(i % 3 == 2 for i in made)


@pytest.mark.parametrize("failure_count", [1, GROUP])
def test_attempts_that_fail_are_not_reported(new_run, begin, actors, stats, failure_count) -> None:
    run_id = new_run(BATCH, selection=SELECTION)
    ray.get(actors.engine.reset.remote(broken=2, failure_count=failure_count))
    begin(run_id, 1).fit(actors.loops)
    assert stats(run_id).attempt_count == BATCH * GROUP - failure_count


def test_what_a_conversation_is_cut_into_is_one_attempt(new_run, begin, stats) -> None:
    trainer = begin(run_id := new_run(BATCH, selection=SELECTION), 1)
    put_group(trainer.train_dataset[0], output_count=3, rm_scores=torch.tensor([[0, 0, 1.0]] * 2))
    trainer.replay_buffer._sync_metadata_from_transfer_queue()
    trainer.replay_buffer._sync_metadata_from_transfer_queue()
    assert stats(run_id).attempt_count == stats(run_id).pass_count == 2


def test_a_reward_model_that_scores_too_late_is_refused(new_run, begin) -> None:
    trainer = begin(new_run(BATCH, selection=SELECTION), 1)
    put_group(trainer.train_dataset[0], output_count=1)
    with pytest.raises(StateError, match="enable_resource_pool=False: must be True"):
        trainer.replay_buffer._sync_metadata_from_transfer_queue()


def put_group(item: dict[str, Any], output_count: int, **columns: Any) -> None:
    """A finished group of two attempts, as verl's agent loops leave it in the queue."""
    tag = {"response_len": 3, "min_global_steps": 0, "max_global_steps": 0, "global_steps": 1}
    for i in range(output_count):
        fields = {"extra_info": NonTensorStack(*[item["extra_info"]] * 2), **columns}
        transfer_queue.kv_batch_put(
            keys=[f"group_{session}_{i}" for session in range(2)],
            partition_id="train",
            fields=TensorDict(fields, batch_size=2),
            tags=[tag] * 2,
        )
    done = {"is_prompt": True, "status": "finished", "global_steps": 1}
    transfer_queue.kv_batch_put(keys=["group"], partition_id="train", tags=[done])


def test_channels_come_from_the_reward_function(new_run, begin, actors, stats) -> None:
    run_id = new_run(
        60,
        selection=SELECTION,
        channels=[run_pb2.Channel(name="style", min_value=0, max_value=10)],
        objective={"reward": 0.5, "style": 0.5},
    )
    begin(run_id, 1, "+trainer.v1.sampler.sampler_kwargs.channels=[style]").fit(actors.loops)
    assert stats(run_id).attempt_count == BATCH * GROUP


def test_a_checkpoint_marks_the_curriculum_and_says_where_the_weights_are(
    new_run, begin, actors, stubs, tmp_path
) -> None:
    run_id = new_run(60, selection=SELECTION)
    trainer = begin(run_id, 3, "trainer.save_freq=1")
    trainer.fit(actors.loops)
    run = stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run
    assert [mark.name for mark in run.checkpoints] == ["step-1", "step-2", "step-3"]
    assert run.policy.policy_step == 3
    assert run.policy.uri == str(tmp_path / "global_step_3" / "actor" / "huggingface")
    shutil.rmtree(tmp_path / "global_step_1" / "actor")  # as verl's workers do
    begin(run_id, 4, "trainer.save_freq=1").fit(actors.loops)
    run = stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run
    assert [mark.name for mark in run.checkpoints] == ["step-2", "step-3", "step-4"]


def test_a_resumed_training_gets_the_batches_that_the_first_one_got(
    new_run, begin, actors, stats, tmp_path
) -> None:
    run_id = new_run(120, selection=SELECTION)
    first = begin(run_id, 4, "trainer.save_freq=2")
    first.fit(actors.loops)
    second = begin(
        run_id,
        4,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={tmp_path / 'global_step_2'}",
    )
    ray.get(actors.engine.reset.remote())  # it answers in turns
    second.fit(actors.loops)
    assert {*second.trained[0]} == {*first.trained[2]}
    assert stats(run_id).timeline == 1
    assert stats(run_id).attempt_count == 4 * BATCH * GROUP


def test_an_asynchronous_training_resumes_with_what_was_in_flight(
    new_run, begin, actors, stats
) -> None:
    run_id = new_run(240, selection=SELECTION)
    changes = ["trainer.v1.trainer_mode=colocate_async", "trainer.save_freq=2"]
    first = begin(run_id, 2, *changes, kind=world.AsyncTrainer)
    first.fit(actors.loops)
    counted = stats(run_id).attempt_count
    second = begin(run_id, 5, *changes, kind=world.AsyncTrainer)
    assert second._restored_tq_prompt_count > 0
    second.fit(actors.loops)
    prompts = [prompt_id for step in second.trained for prompt_id in {*step}]
    assert len(prompts) == len({*prompts}) == 3 * BATCH  # none came twice
    assert stats(run_id).timeline == 1
    assert stats(run_id).attempt_count > counted


def test_the_trainer_with_engines_of_its_own_takes_the_replay_buffer(
    new_run, use, configure
) -> None:
    """It needs GPUs to do more; switching asks whether the buffer can be waited on."""
    use(new_run(selection=SELECTION))
    config = configure(
        "trainer.v1.trainer_mode=separate_async",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "trainer.v1.separate_async.hybrid_rollout.enable_switch=True",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={BATCH // 2}",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    )
    trainer = PPOTrainerSeparateAsync(config)
    assert isinstance(trainer.replay_buffer, adapter.CurriculumReplayBufferAsync)
    assert trainer.hybrid_rollout_config.enable_switch


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("data.dataloader_num_workers=2", InvalidRequestError, "dataloader_num_workers=2: must be"),
        ("data.train_max_samples=-1", InvalidRequestError, "train_max_samples=-1: must say"),
        ("trainer.v1.sampler.custom_sampler.path=null", StateError, "must be replay_buffer"),
        ("algorithm.filter_groups.enable=True", InvalidRequestError, "filter_groups_metric: must"),
    ],
)
def test_a_configuration_that_would_not_work_is_refused(
    new_run, begin, change, error, message
) -> None:
    with pytest.raises(error, match=message):
        begin(new_run(8, selection=SELECTION), 1, change)


def test_a_dataset_that_was_forgotten_is_named(new_run, begin, actors) -> None:
    files = "data.train_files=${data.val_files}"
    trainer = begin(new_run(8, selection=SELECTION), 1, files, "data.train_batch_size=2")
    with pytest.raises(StateError, match=r"custom_cls.name: must be CurriculumDataset"):
        trainer.fit(actors.loops)
