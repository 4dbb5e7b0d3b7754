#!/usr/bin/env bash
# ACT as a warm-up for a run you already have: the critic stage, then your own command with only its model changed.
#   MODEL=Qwen/Qwen3-8B PAIRS=pairs/train/pairs.parquet PAIRS_VAL=pairs/valid_seen/pairs.parquet OUT=runs/warm_up \
#   recipes/mix/run_warm_up.sh [KEY=VALUE of the critic stage ...] -- python3 -m verl.trainer.main_ppo ... YOUR COMMAND
# verl's batch is 1,024 prompts; with fewer pairs, add data.train_batch_size=64
# actor_rollout_ref.actor.ppo_mini_batch_size=64. Started again, the warm-up resumes from its last checkpoint.
set -euo pipefail

critic=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do critic+=("$1"); shift; done
[ $# -gt 1 ] || { echo "run_warm_up.sh: give your own command after --" >&2; exit 2; }
shift

"${PYTHON:-python3}" -m verl.trainer.main_ppo \
    +act=critic \
    data.train_files="$PAIRS" \
    data.val_files="$PAIRS_VAL" \
    actor_rollout_ref.model.path="$MODEL" \
    trainer.default_local_dir="$OUT/checkpoints" \
    'trainer.logger=["console","file"]' \
    trainer.experiment_name=warm_up \
    trainer.save_freq=50 \
    "${critic[@]}"

step=$(cat "$OUT/checkpoints/latest_checkpointed_iteration.txt")
actor="$OUT/checkpoints/global_step_$step/actor"
"${PYTHON:-python3}" -m verl_act dev merge-lora "$actor"  # does nothing if the critic stage trained no LoRA adapters
model="$actor/huggingface"
[ -d "$model" ] || model="$actor/model/huggingface"  # Megatron's
exec "$@" actor_rollout_ref.model.path="$model"
