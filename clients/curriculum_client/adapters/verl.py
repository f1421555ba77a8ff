"""Trains with verl 0.9 or newer on what the curriculum serves. Start it through this module,

    export CURRICULUM_RUN=math CURRICULUM_SERVER=localhost:50051
    python -m curriculum_client.adapters.verl data.train_max_samples=102400 ...

for verl.trainer.main_ppo, with verl's own overrides. Or put the lines of `OVERRIDES` into your
configuration, and start verl as ever.

Prompts. data.train_files is not read, data.val_files as ever. An epoch has data.train_max_samples
prompts. The payload may hold what a row of verl's files does: messages (else the text is the
user's), data_source (else it is the domain), reward_model (else its ground truth is the payload's
answer) and extra_info. Each prompt gets the attempts it was allotted: give the run rollout.n as its
group_size, by which verl sizes its mini-batches, and reach_attempt_factor 1; or the service spreads
so many over a batch:

    +data.curriculum.rollout_budget=8192

Rewards. Attempts are reported as soon as their group is done, before verl filters groups or drops
stale ones, as made by the newest weights that took part. Where the run's objective names channels,
the reward function returns them beside its score, and

    +trainer.v1.sampler.sampler_kwargs.channels=[explanation]

names them. verl leaves DAPO's filter to whoever brings a sampler. This one does it too, where it is
told; other arguments of verl's ReplayBuffer are given likewise:

    +trainer.v1.sampler.sampler_kwargs.filter_groups_metric='${algorithm.filter_groups.metric}'

Checkpoints. A checkpoint marks the curriculum, and verl's resuming rolls it back to the mark. Where
checkpoints hold "hf_model", probers learn where the weights are. The asynchronous trainers keep the
prompts in flight in their checkpoints and finish them after resuming; those are not counted.

Tried with verl 0.9.1 on Python 3.11 and, in place of the GPUs, a generator of fixed answers.
"""

from __future__ import annotations

import runpy
import sys

from curriculum_client.adapters._verl_dataset import TRAIN_FILES, CurriculumDataset
from curriculum_client.adapters._verl_reports import (
    CurriculumCheckpoints,
    CurriculumReplayBuffer,
    CurriculumReplayBufferAsync,
    replay_buffer,
)

__all__ = [
    "MODULE",
    "OVERRIDES",
    "TRAIN_FILES",
    "CurriculumCheckpoints",
    "CurriculumDataset",
    "CurriculumReplayBuffer",
    "CurriculumReplayBufferAsync",
    "replay_buffer",
]

MODULE = "curriculum_client.adapters.verl"
"""This one, whose name is another where it is started."""

OVERRIDES = (
    f"data.train_files={TRAIN_FILES}",
    "data.dataloader_num_workers=0",
    f"data.custom_cls.path=pkg://{MODULE}",
    "data.custom_cls.name=CurriculumDataset",
    f"trainer.v1.sampler.custom_sampler.path=pkg://{MODULE}",
    "trainer.v1.sampler.custom_sampler.name=replay_buffer",
    f"trainer.checkpoint_callback_class={MODULE}.CurriculumCheckpoints",
)
"""What puts the curriculum into verl's configuration."""


if __name__ == "__main__":
    sys.argv += OVERRIDES
    runpy.run_module("verl.trainer.main_ppo", run_name="__main__", alter_sys=True)
