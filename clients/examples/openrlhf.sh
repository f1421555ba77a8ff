#!/usr/bin/env bash
# DAPO-style training with OpenRLHF on a run of the curriculum, for one node with 8 GPUs:
#
#     curriculum runs create math --group-size 8 --set reach_attempt_factor=1
#     curriculum prompts add math prompts.jsonl     # each with "payload": {"answer": ...}
#     CURRICULUM_RUN=math CURRICULUM_SERVER=localhost:50051 bash openrlhf.sh
#
# It was openrlhf.cli.train_ppo_ray with --data.prompt_dataset; reward.py stays as it is.

set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen3-4B}
TRAIN=curriculum_client.adapters.openrlhf  # curriculum

arguments=(
  --data.max_samples 128000  # curriculum
  --data.input_key prompt
  --data.label_key answer
  --data.apply_chat_template
  --actor.model_name_or_path "$MODEL"
  --actor.num_gpus_per_node 8
  --vllm.num_engines 8
  --vllm.tensor_parallel_size 1
  --vllm.enable_sleep
  --ds.enable_sleep
  --train.colocate_all
  --train.batch_size 1024
  --reward.remote_url reward.py
  --rollout.batch_size 128
  --rollout.n_samples_per_prompt 8
  --algo.advantage.estimator group_norm
  --algo.kl.init_coef 0
  --ckpt.save_steps 20
  --ckpt.load_enable
)
python3 -m "$TRAIN" "${arguments[@]}"
