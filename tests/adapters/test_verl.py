"""The adapter of verl 0.9 in verl's own training loop, over a real service."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import hydra
import pytest
import ray
import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.utils import create_rl_dataset
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_client.adapters import _process
from curriculum_client.adapters import verl as adapter
from tests.adapters import verl_world as world

pytestmark = [
    pytest.mark.adapter,
    pytest.mark.filterwarnings("ignore"),  # of verl, ray and torch
]

BATCH, GROUP = 6, 4
OVERRIDES = [*adapter.OVERRIDES, f"data.train_max_samples={BATCH * 10}"]


def compose(*overrides: str) -> Any:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides=list(overrides))
    config.transfer_queue.enable = True
    config.transfer_queue.backend.SimpleStorage.num_data_storage_units = 1
    return config


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """verl's configuration of a small training, with what a user adds and with changes."""
    folder = tmp_path_factory.mktemp("verl")
    row = {
        "prompt": [{"role": "user", "content": "What is 3 + 3?"}],
        "data_source": "held-out",
        "reward_model": {"style": "rule", "ground_truth": "6"},
        "extra_info": {"index": 0},
    }
    datasets.Dataset.from_list([row, row]).to_parquet(folder / "held_out.parquet")
    small = [
        f"data.val_files={folder / 'held_out.parquet'}",
        f"data.train_batch_size={BATCH}",
        f"actor_rollout_ref.model.path={world.make_model(folder / 'model')}",
        f"actor_rollout_ref.rollout.n={GROUP}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        f"reward.custom_reward_function.path={world.REWARDS}",
        "reward.custom_reward_function.name=score",
        "reward.num_workers=1",
        "algorithm.adv_estimator=grpo",
        "trainer.logger=[]",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.total_epochs=1",
    ]
    return lambda *changes: compose(*OVERRIDES, *small, *changes)


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


@pytest.fixture
def use(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Begins a process, as far as the adapter can tell, that trains on a run."""

    def use(run_id: str) -> None:
        end()
        monkeypatch.setenv("CURRICULUM_SERVER", server.address)
        monkeypatch.setenv("CURRICULUM_RUN", run_id)

    def end() -> None:
        if _process.client.cache_info().currsize:
            _process.client().close()
        _process.client.cache_clear()
        adapter._Shared.trainer_mode = adapter._Shared.feed = None

    yield use
    end()


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


@pytest.fixture
def stats(stubs: Any) -> Callable[[str], Any]:
    return lambda run_id: stubs.operator.GetStats(op.GetStatsRequest(run_id=run_id)).stats


SELECTION = {"group_size": GROUP, "reach_attempt_factor": 1}
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


PAYLOADS = [
    ({"answer": "4"}, {"reward_model": {"style": "rule", "ground_truth": "4"}}),
    (
        {"reward_model": {"ground_truth": "5"}, "answer": "4"},
        {"reward_model": {"ground_truth": "5"}},
    ),
    ({"data_source": "gsm8k", "answer": "4"}, {"data_source": "gsm8k"}),
    (
        {"messages": [{"role": "system", "content": "Add."}], "answer": "4"},
        {"raw_prompt": [{"role": "system", "content": "Add."}]},
    ),
    (
        {"extra_info": {"index": 7, "tools_kwargs": {"a": 1}}, "answer": "4"},
        {"index": 7, "tools_kwargs": {"a": 1}},
    ),
    ({"answer": "4"}, {"raw_prompt": [{"role": "user", "content": "2 + 2?"}], "data_source": "d"}),
]


@pytest.mark.parametrize(("payload", "expected"), PAYLOADS)
def test_items_are_made_of_the_payload(new_run, stubs, use, configure, payload, expected) -> None:
    use(run_id := new_run(selection=SELECTION))
    prompt = prompt_pb2.Prompt(
        prompt_id="p", domain="d", text="2 + 2?", payload_json=json.dumps(payload)
    )
    stubs.operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=[prompt]))
    adapter._Shared.trainer_mode = "sync"
    data = configure().data
    dataset = create_rl_dataset(data.train_files, data, None, None, max_samples=60)
    item = dataset[3]
    assert len(dataset) == 60
    assert item | expected == item
    assert item["extra_info"]["prompt_id"] == "p"
    assert item["__rollout_n__"] == GROUP
    held_out = create_rl_dataset(data.val_files, data, None, None)
    assert {*item} == {*held_out[0], "__rollout_n__"}


def test_a_payload_without_an_answer_is_refused(new_run, stubs, use, configure) -> None:
    use(run_id := new_run(selection=SELECTION))
    prompt = prompt_pb2.Prompt(prompt_id="p", domain="d", text="2 + 2?")
    stubs.operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=[prompt]))
    adapter._Shared.trainer_mode = "sync"
    data = configure().data
    dataset = create_rl_dataset(data.train_files, data, None, None, max_samples=60)
    with pytest.raises(InvalidRequestError, match="'p': must have reward_model or answer"):
        dataset[0]


def test_the_example_says_what_verl_knows(tmp_path) -> None:
    """And the same of the lines that it has in comments."""
    script = Path(__file__).parents[2] / "clients" / "examples" / "verl.sh"
    said = tmp_path / "python"
    said.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$SAID"\n')
    said.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/root", "SAID": "said.txt"}
    subprocess.run(["bash", script], cwd=tmp_path, env=variables, check=True)
    module, *overrides = (tmp_path / "said.txt").read_text().split("\n")[1:-1]
    assert module == "curriculum_client.adapters.verl"
    optional = [line.strip("# \"'\n") for line in script.read_text().splitlines() if "#   " in line]
    optional = [line.replace("''", "'") for line in optional if line.startswith("+")]
    assert len(optional) == 3
    overrides += [line.replace("'", "") for line in optional]
    config = compose(*overrides)
    assert config.data.train_max_samples == 102400
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.CURRICULUM_RUN == "$CURRICULUM_RUN"


def test_the_module_starts_verl_with_the_curriculum(tmp_path) -> None:
    """As far as its configuration, which hydra prints in place of a training."""
    files = f"data.train_files={tmp_path}/train.parquet"  # which the curriculum's comes after
    command = [sys.executable, "-m", adapter.MODULE, "--cfg", "job", files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert config.data.train_files == "curriculum"
    assert config.data.custom_cls.name == "CurriculumDataset"
    assert config.trainer.v1.sampler.custom_sampler.path == f"pkg://{adapter.MODULE}"
