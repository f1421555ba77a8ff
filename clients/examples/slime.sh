#!/usr/bin/env bash
# Trains with slime (or miles) on a run of the curriculum. In slime's folder, with Ray started:
#
#     curriculum runs create math --group-size 8 --set reach_attempt_factor=1
#     curriculum prompts add math prompts.jsonl     # each with "payload": {"answer": ...}
#     CURRICULUM_RUN=math CURRICULUM_SERVER=localhost:50051 bash slime.sh
#
# Adapt MODEL, CHECKPOINT and the numbers. Without the lines that say so it trains on PROMPTS.

set -euo pipefail

MODEL=${MODEL:-/models/Qwen3-4B}
CHECKPOINT=${CHECKPOINT:-/checkpoints/Qwen3-4B}
PROMPTS=${PROMPTS:-prompts.jsonl}
source scripts/models/qwen3-4B.sh # MODEL_ARGS

arguments=(
  --hf-checkpoint "$MODEL"
  --ref-load "${MODEL}_torch_dist"
  --load "$CHECKPOINT"
  --save "$CHECKPOINT"
  --save-interval 20

  --prompt-data "$PROMPTS"
  --data-source-path curriculum_client.adapters.slime.CurriculumDataSource    # curriculum
  --rollout-all-samples-process-path curriculum_client.adapters.slime.report  # curriculum
  --input-key text
  --label-key answer
  --apply-chat-template
  --rm-type math

  --num-rollout 1000
  --rollout-batch-size 32
  --n-samples-per-prompt 8
  --over-sampling-batch-size 48
  --dynamic-sampling-filter-path
  slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std
  --global-batch-size 256
  --rollout-max-response-len 8192
  --rollout-temperature 1
  --advantage-estimator grpo
  --lr 1e-6

  --actor-num-nodes 1
  --actor-num-gpus-per-node 8
  --colocate
  --rollout-num-gpus-per-engine 2
)

environment=$(printf '{"env_vars": {"PYTHONPATH": "%s", "CURRICULUM_RUN": "%s", "CURRICULUM_SERVER": "%s"}}' \
  /root/Megatron-LM "${CURRICULUM_RUN:-}" "${CURRICULUM_SERVER:-localhost:50051}")

ray job submit --address http://127.0.0.1:8265 --runtime-env-json "$environment" -- \
  python3 train.py "${MODEL_ARGS[@]}" "${arguments[@]}"
