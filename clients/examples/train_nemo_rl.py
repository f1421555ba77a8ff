"""What NeMo-RL's examples/run_grpo.py imports to train on a run of the curriculum.

    from train_nemo_rl import MathActor, curriculum_dataloader

    environments = {"math": MathActor.remote(config["env"]["math"])}
    ...                                     # as it was, up to and with setup(...)
    dataloader = curriculum_dataloader(config, dataset, checkpointer)
    grpo_train(policy, policy_generation, dataloader, ...)

    curriculum-server &
    CURRICULUM_RUN=math uv run python run_grpo.py --config examples/configs/grpo_math_1B.yaml

A prompt's `prompt_id` is here the number of its row in NeMo-RL's dataset, which prepares the data
as ever. Names and arguments of NeMo-RL are to be adapted to its version; lines that end in
`# curriculum` are what a trainer adds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import torch
from nemo_rl.data.collate_fn import rl_collate_fn
from nemo_rl.environments.math_environment import MathEnvironment

from curriculum_client import TrainerClient
from curriculum_client.adapters.nemo_rl import CurriculumDataloader, reporting

MathActor = ray.remote(reporting(MathEnvironment))  # curriculum


def curriculum_dataloader(config: Any, dataset: Any, checkpointer: Any) -> CurriculumDataloader:
    """Instead of the one that setup(...) made, and where its newest checkpoint left off."""
    dataloader = CurriculumDataloader(  # curriculum
        TrainerClient.from_environment(),
        config["grpo"]["num_prompts_per_step"],
        config["grpo"]["num_generations_per_prompt"],
        to_datum=lambda served, _: dataset[int(served.prompt_id)],
        collate=rl_collate_fn,
    )
    if folder := checkpointer.get_latest_checkpoint_path():
        state = torch.load(Path(folder, "train_dataloader.pt"))
        dataloader.load_state_dict(state)  # curriculum
    return dataloader
