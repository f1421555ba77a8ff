"""GRPO with SkyRL on what a curriculum serves. Give it SkyRL's own settings:

CURRICULUM_RUN=math python train_skyrl.py trainer.max_training_steps=1000 \\
    trainer.policy.model.path=Qwen/Qwen2.5-1.5B-Instruct generator.n_samples_per_prompt=8
"""

import sys

import ray
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.entrypoints.main_base import BasePPOExp
from skyrl.train.utils import validate_cfg
from skyrl.train.utils.utils import initialize_ray

from curriculum_client.adapters.skyrl import Curriculum  # curriculum


class Experiment(Curriculum, BasePPOExp):  # curriculum
    """Nothing else changes."""


@ray.remote(num_cpus=1)
def train(config: SkyRLTrainConfig) -> None:
    """In a process of its own, not on the head node."""
    Experiment(config).run()


if __name__ == "__main__":
    config = SkyRLTrainConfig.from_cli_overrides(sys.argv[1:])
    validate_cfg(config)
    initialize_ray(config)
    ray.get(train.remote(config))
