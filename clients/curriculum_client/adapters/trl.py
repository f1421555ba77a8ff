"""Trains with TRL's GRPOTrainer on what the curriculum serves.

Through TRL's public interfaces, which run a batch ahead (TRL 1.9.0 or newer):

    feed = CurriculumFeed(TrainerClient("localhost:50051", run_id="math"))
    trainer = GRPOTrainer(
        **feed.arguments(my_reward),
        args=GRPOConfig(max_steps=1000, shuffle_dataset=False, ignore_data_skip=True, ...),
        ...,
    )

Or just in time, where each batch is chosen knowing all rewards of the batch before, and rewards of
every kind are reported. It overrides two methods of TRL's that are private, and the same from TRL
0.29.0 on:

    trainer = CurriculumGRPOTrainer(
        curriculum=TrainerClient("localhost:50051", run_id="math"),
        reward_funcs=[my_reward],
        args=GRPOConfig(max_steps=1000, ...),
        ...,
    )

TRL gives every prompt num_generations attempts, so create the run with that group_size and with
reach_attempt_factor 1. The pool should hold several batches.

Tried with TRL 1.16.0, 1.9.0 and, just in time, 0.29.0 on Python 3.11, on one rank and on two.
"""

from curriculum_client.adapters._trl_callback import CurriculumCallback, Publish
from curriculum_client.adapters._trl_feed import CurriculumFeed
from curriculum_client.adapters._trl_trainer import CurriculumGRPOTrainer, CurriculumMixin

__all__ = [
    "CurriculumCallback",
    "CurriculumFeed",
    "CurriculumGRPOTrainer",
    "CurriculumMixin",
    "Publish",
]
