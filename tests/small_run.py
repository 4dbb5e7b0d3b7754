"""Overrides for the critic stage of the embedded model on a CPU, as small as it gets."""

SMALL_RUN = [
    "+act/device=cpu",
    "data.act.template=compact",
    "data.act.history_length=8",
    "data.train_batch_size=4",
    "data.max_prompt_length=960",
    "data.max_response_length=16",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.use_dynamic_bsz=false",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.actor.use_kl_loss=false",
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.rollout.max_model_len=1024",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "algorithm.rollout_correction.bypass_mode=true",
    "trainer.logger=[console]",
    "trainer.save_freq=1",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
]
