#!/usr/bin/env bash
# verl's GRPO on GSM8K, with a quarter of every batch from ACT pairs. Without the lines marked ACT, and with only $GSM8K
# and $GSM8K_VAL as its files, it is the plain run.
#   MODEL=Qwen/Qwen3-8B PAIRS=pairs/train/pairs.parquet PAIRS_VAL=pairs/valid_seen/pairs.parquet \
#   GSM8K=~/data/gsm8k/train.parquet GSM8K_VAL=~/data/gsm8k/test.parquet \
#   recipes/mix/run_pairs_and_gsm8k.sh [KEY=VALUE ...]
set -euo pipefail

arguments=(
    +act=mix                                              # ACT
    data.train_files="['$GSM8K','$PAIRS']"                # ACT: ours next to yours
    data.val_files="['$GSM8K_VAL','$PAIRS_VAL']"          # ACT
    'data.act.mix.weights=[3,1]'                          # ACT: the ratio of rows, in order of the files
    data.shuffle=false                                    # ACT: the ratio holds in every batch, not only per epoch
    data.train_batch_size=1024
    data.max_prompt_length=2048
    data.max_response_length=1024
    data.filter_overlong_prompts=true
    algorithm.adv_estimator=grpo
    algorithm.use_kl_in_reward=false
    actor_rollout_ref.model.path="$MODEL"
    actor_rollout_ref.model.use_remove_padding=true
    actor_rollout_ref.model.enable_gradient_checkpointing=true
    actor_rollout_ref.actor.optim.lr=1e-6
    actor_rollout_ref.actor.ppo_mini_batch_size=256
    actor_rollout_ref.actor.use_dynamic_bsz=true
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
    actor_rollout_ref.actor.use_kl_loss=true
    actor_rollout_ref.actor.kl_loss_coef=0.001
    actor_rollout_ref.actor.kl_loss_type=low_var_kl
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.n=5
    trainer.n_gpus_per_node=8
    'trainer.logger=["console","file"]'                   # add "wandb" if you are logged in
    trainer.max_actor_ckpt_to_keep=2
    trainer.project_name=verl_act_mix
    trainer.experiment_name=gsm8k_and_pairs
    trainer.total_epochs=15
    trainer.save_freq=20
    trainer.test_freq=5
)
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo "${arguments[@]}" "$@"
