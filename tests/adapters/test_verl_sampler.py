"""The sampler of verl 0.7 in verl's own dataloader, over a real service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import hydra
import numpy as np
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from verl import DataProto
from verl.experimental.dataset.sampler import AbstractCurriculumSampler
from verl.trainer.main_ppo import create_rl_dataset, create_rl_sampler
from verl.utils.dataset.rl_dataset import collate_fn

from curriculum_api.errors import AlreadyExistsError, InvalidRequestError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import run_pb2
from curriculum_client.adapters.verl_sampler import CurriculumSampler, add_prompts

pytestmark = [pytest.mark.adapter, pytest.mark.filterwarnings("ignore")]  # of verl and torch

BATCH, GROUP, ROWS = 4, 2, 30
SELECTION = {"group_size": GROUP, "reach_attempt_factor": 1}
OVERRIDES = [  # what a user adds
    "data.sampler.class_path=pkg://curriculum_client.adapters.verl_sampler",
    "data.sampler.class_name=CurriculumSampler",
    "data.dataloader_num_workers=0",
]


def make_rows(count: int = ROWS) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"What is {i} + {i}?"}],
            "data_source": "sums",
            "reward_model": {"style": "rule", "ground_truth": str(2 * i)},
            "extra_info": {"index": 100 + i},
            "name": f"row-{i}",
        }
        for i in range(count)
    ]


class Training:
    """What verl's trainer does with its dataloader and the sampler in it."""

    def __init__(self, files: Path, *changes: str) -> None:
        with hydra.initialize_config_module("verl.trainer.config", version_base=None):
            config = hydra.compose(
                "ppo_trainer",
                [
                    *OVERRIDES,
                    f"data.train_files={files}",
                    f"data.train_batch_size={BATCH}",
                    *changes,
                ],
            )
        self.data = config.data
        self.dataset = create_rl_dataset(config.data.train_files, config.data, None, None)
        self.sampler = create_rl_sampler(config.data, self.dataset)
        self.loader = StatefulDataLoader(
            dataset=self.dataset,
            batch_size=BATCH,
            num_workers=config.data.dataloader_num_workers,
            drop_last=True,
            collate_fn=collate_fn,
            sampler=self.sampler,
        )
        self.trained: list[list[int]] = []
        self.saved: dict[int, Any] = {}

    def epoch(self, steps: int | None = None, save: int | None = None) -> None:
        """The steps of an epoch, or its first ones; verl saves before it updates the sampler."""
        for step, columns in enumerate(self.loader, start=1):
            batch = DataProto.from_single_dict(columns).repeat(GROUP, interleave=True)
            indices = [info["index"] - 100 for info in batch.non_tensor_batch["extra_info"]]
            self.trained.append(indices[::GROUP])
            batch.batch["token_level_scores"] = torch.tensor(
                [[0.0, float(row % GROUP if i % 2 else 1)] for row, i in enumerate(indices)]
            )
            batch.batch["response_mask"] = torch.ones(len(batch), 2, dtype=torch.int64)
            batch.non_tensor_batch["style"] = np.array([0.5] * len(batch), dtype=object)
            if step == save:
                self.saved[step] = self.loader.state_dict()
            if isinstance(self.loader.sampler, AbstractCurriculumSampler):
                self.loader.sampler.update(batch=batch)
            if step == steps:
                return


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "train.parquet"
    datasets.Dataset.from_list(make_rows()).to_parquet(file)
    return file


def test_an_epoch_trains_on_served_rows_and_reports_them(new_run, use, rows, stats) -> None:
    use(run_id := new_run(selection=SELECTION))
    assert add_prompts(make_rows()) == ROWS
    assert add_prompts(make_rows()) == 0
    training = Training(rows)
    assert isinstance(training.sampler, CurriculumSampler)
    assert len(training.loader) == ROWS // BATCH
    training.epoch()
    trained = [i for step in training.trained for i in step]
    assert len(training.trained) == ROWS // BATCH
    seen = stats(run_id)
    assert seen.attempt_count == len(trained) * GROUP
    assert seen.group_count == len(trained)
    assert seen.mixed_group_count == sum(i % 2 for i in trained)
    assert seen.leased_prompt_count == 0


def test_every_batch_is_picked_after_the_one_before_was_reported(new_run, use, rows, stats) -> None:
    use(run_id := new_run(selection=SELECTION))
    add_prompts(make_rows())
    training = Training(rows)
    batches = iter(training.loader)
    next(batches)
    assert stats(run_id).leased_prompt_count == BATCH


def test_attempts_are_of_the_step_before(new_run, use, rows, stubs) -> None:
    use(run_id := new_run(selection=SELECTION, window_steps=1))
    add_prompts(make_rows())
    training = Training(rows)
    training.epoch(steps=3)
    for step, indices in enumerate(training.trained):
        request = op.GetPromptRequest(run_id=run_id, prompt_id=str(100 + indices[0]))
        history = stubs.operator.GetPrompt(request).history
        assert step in [point.first_policy_step for point in history]


def test_a_second_epoch_goes_on(new_run, use, rows, stats) -> None:
    use(run_id := new_run(selection=SELECTION))
    add_prompts(make_rows())
    training = Training(rows)
    training.epoch()
    training.epoch()
    assert len(training.trained) == 2 * (ROWS // BATCH)
    assert stats(run_id).attempt_count == 2 * (ROWS // BATCH) * BATCH * GROUP


def test_a_resumed_training_rolls_back_and_gets_the_same_rows(
    new_run, use, rows, stats, stubs
) -> None:
    use(run_id := new_run(selection=SELECTION))
    add_prompts(make_rows())
    first = Training(rows)
    first.epoch(steps=5, save=3)
    run = stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run
    assert [(mark.name, mark.policy_step) for mark in run.checkpoints] == [("step-3", 3)]
    use(run_id)
    second = Training(rows)
    second.loader.load_state_dict(first.saved[3])
    second.epoch()
    assert stats(run_id).timeline == 1
    assert second.sampler._feed.policy_step == ROWS // BATCH
    assert len(second.trained) == ROWS // BATCH - 3  # the rest of the epoch
    assert {*second.trained[0]} != {*first.trained[2]}  # the weights know step 3
    # Step 3, whose checkpoint came before its rewards, is not counted.
    assert stats(run_id).attempt_count == (ROWS // BATCH - 1) * BATCH * GROUP
    use(run_id)
    third = Training(rows)
    third.loader.load_state_dict(first.saved[3])
    third.epoch(steps=2)
    assert third.trained == second.trained[:2]


def test_ids_may_be_in_a_column(new_run, use, rows, stats) -> None:
    use(run_id := new_run(selection=SELECTION))
    add_prompts(make_rows(), id_field="name")
    training = Training(rows, "+data.sampler.id_field=name")
    training.epoch(steps=1)
    assert stats(run_id).attempt_count == BATCH * GROUP


def test_channels_come_from_the_reward_function(new_run, use, rows, stats) -> None:
    use(
        run_id := new_run(
            selection=SELECTION,
            channels=[run_pb2.Channel(name="style", min_value=0, max_value=1)],
            objective={"reward": 0.5, "style": 0.5},
        )
    )
    add_prompts(make_rows())
    Training(rows, "+data.sampler.channels=[style]").epoch(steps=1)
    assert stats(run_id).attempt_count == BATCH * GROUP


def test_rows_that_share_an_id_are_refused(new_run, use, tmp_path) -> None:
    use(new_run(selection=SELECTION))
    file = tmp_path / "twice.parquet"
    datasets.Dataset.from_list(make_rows(2) + make_rows(1)).to_parquet(file)
    with pytest.raises(InvalidRequestError, match=r"'100': is the id of rows 0 and 2"):
        Training(file)


@pytest.mark.parametrize("field", ["nothing", "extra_info.nothing", "name.nothing"])
def test_a_field_that_rows_do_not_have_is_refused(new_run, use, rows, field) -> None:
    use(new_run(selection=SELECTION))
    with pytest.raises(InvalidRequestError, match=rf"id_field='{field}': row 0"):
        Training(rows, f"+data.sampler.id_field={field}")


def test_a_prompt_that_no_row_has_is_refused(new_run, use, rows) -> None:
    use(new_run(8, selection=SELECTION))
    with pytest.raises(InvalidRequestError, match=r"no row has extra_info.index='p\d'"):
        Training(rows).epoch(steps=1)


def test_another_text_under_an_id_is_refused(new_run, use) -> None:
    use(new_run(selection=SELECTION))
    add_prompts(make_rows(1))
    changed = [{**make_rows(1)[0], "prompt": [{"role": "user", "content": "Why?"}]}]
    with pytest.raises(AlreadyExistsError):
        add_prompts(changed)


def test_workers_are_refused_by_verl_itself(new_run, use, rows) -> None:
    use(new_run(selection=SELECTION))
    with pytest.raises(AssertionError, match="num_workers must be 0"):
        Training(rows, "data.dataloader_num_workers=2")
