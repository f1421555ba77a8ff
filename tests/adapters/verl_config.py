"""verl's own configuration, of a small training with the curriculum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import hydra

from curriculum_client.adapters.verl import OVERRIDES
from tests.adapters.verl_world import REWARDS, make_model

BATCH, GROUP = 6, 4
SELECTION = {"group_size": GROUP, "reach_attempt_factor": 1}


def compose(*overrides: str) -> Any:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides=list(overrides))
    config.transfer_queue.enable = True
    config.transfer_queue.backend.SimpleStorage.num_data_storage_units = 1
    return config


def small_training(folder: Path) -> Callable[..., Any]:
    """Makes it, with what a user adds and with changes."""
    row = {
        "prompt": [{"role": "user", "content": "What is 3 + 3?"}],
        "data_source": "held-out",
        "reward_model": {"style": "rule", "ground_truth": "6"},
        "extra_info": {"index": 0},
    }
    datasets.Dataset.from_list([row, row]).to_parquet(folder / "held_out.parquet")
    small = [
        f"data.train_max_samples={BATCH * 10}",
        f"data.val_files={folder / 'held_out.parquet'}",
        f"data.train_batch_size={BATCH}",
        f"actor_rollout_ref.model.path={make_model(folder / 'model')}",
        f"actor_rollout_ref.rollout.n={GROUP}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        f"reward.custom_reward_function.path={REWARDS}",
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
