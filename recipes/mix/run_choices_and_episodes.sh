#!/usr/bin/env bash
# GRPO on live episodes, with ACT choices as an auxiliary task: one choice for every three episodes, in one batch.
#   MODEL=Qwen/Qwen3-8B TASKS=tasks/train/tasks.parquet PAIRS=pairs/train/pairs.parquet \
#   TASKS_VAL=tasks/eval/tasks.parquet PAIRS_VAL=pairs/valid_seen/pairs.parquet \
#   recipes/mix/run_choices_and_episodes.sh [KEY=VALUE ...]
# Each turn of an episode is its own sample, so a step has many more samples than prompts times replies, and several
# updates where ppo_mini_batch_size is smaller than that.
set -euo pipefail

arguments=(
    +act=action
    data.train_files="['$TASKS','$PAIRS']"
    data.val_files="['$TASKS_VAL','$PAIRS_VAL']"
    'data.act.mix.weights=[3,1]'
    data.shuffle=false
    data.act.history_length=8
    data.train_batch_size=64
    data.max_prompt_length=4096
    data.max_response_length=512
    actor_rollout_ref.model.path="$MODEL"
    actor_rollout_ref.actor.ppo_mini_batch_size=64
    actor_rollout_ref.actor.use_dynamic_bsz=true
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
    actor_rollout_ref.rollout.agent.num_workers=8
    trainer.n_gpus_per_node=8
    'trainer.logger=["console","file"]'                   # add "wandb" if you are logged in
    trainer.max_actor_ckpt_to_keep=2
    trainer.project_name=verl_act_mix
    trainer.experiment_name=episodes_and_choices
    trainer.total_epochs=15
    trainer.save_freq=20
    trainer.test_freq=10
)
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo "${arguments[@]}" "$@"
