#!/usr/bin/env bash
# Trains with verl 0.9 or newer on a run of the curriculum:
#
#     curriculum runs create math --group-size 8 --set reach_attempt_factor=1
#     curriculum prompts add math ~/data/gsm8k/train.parquet \
#         --text-field prompt --domain-field data_source
#     CURRICULUM_RUN=math CURRICULUM_SERVER=localhost:50051 bash verl.sh
#
# Adapt the paths and the numbers. It was verl.trainer.main_ppo, which trains on the files that
# it names. A Ray cluster that runs already has to be told the variables, see below.

set -euo pipefail

DATA=${DATA:-$HOME/data/gsm8k}
MODEL=${MODEL:-Qwen/Qwen2.5-3B-Instruct}
TRAIN=curriculum_client.adapters.verl  # curriculum

# With algorithm.filter_groups.enable=True, also
#   +trainer.v1.sampler.sampler_kwargs.filter_groups_metric='${algorithm.filter_groups.metric}'
# and for a Ray cluster that runs already, also
#   "+ray_kwargs.ray_init.runtime_env.env_vars.CURRICULUM_RUN=$CURRICULUM_RUN"
#   "+ray_kwargs.ray_init.runtime_env.env_vars.CURRICULUM_SERVER='$CURRICULUM_SERVER'"

arguments=(
  # The curriculum has no end: an epoch is what verl is told, here 400 steps.
  data.train_max_samples=102400  # curriculum
  data.train_files="$DATA/train.parquet"
  data.val_files="$DATA/test.parquet"
  data.train_batch_size=256
  data.max_prompt_length=512
  data.max_response_length=1024
  algorithm.adv_estimator=grpo
  actor_rollout_ref.model.path="$MODEL"
  actor_rollout_ref.actor.ppo_mini_batch_size=64
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8
  actor_rollout_ref.actor.checkpoint.save_contents='[model,optimizer,extra,hf_model]'
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n=8
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8
  trainer.total_epochs=1
  trainer.save_freq=20
  trainer.test_freq=20
  trainer.n_gpus_per_node=8
)
python -m "$TRAIN" "${arguments[@]}" "$@"
