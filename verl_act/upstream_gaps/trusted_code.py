"""Gap: verl's reward workers load the policy's tokenizer with `trust_remote_code=True`, whatever the run's setting.

A model's own code then runs in them even with `actor_rollout_ref.model.trust_remote_code=false`, the default. Here that
key decides, also for the tokenizer of a reward model, which has no such key.

Upstream change it waits for: the configured value in `RewardLoopWorker._init_reward_fn`
(verl/experimental/reward_loop/reward_loop.py).
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("verl.experimental.reward_loop.reward_loop:RewardLoopWorker._init_reward_fn")
def load_as_configured(wrapped: Callable[[], None], worker: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    from verl.experimental.reward_loop import reward_loop
    from verl.utils.tokenizer import hf_tokenizer as load

    trusted = bool(worker.config.actor_rollout_ref.model.get("trust_remote_code", False))

    def hf_tokenizer(path: str, **options: Any) -> Any:
        return load(path, **{**options, "trust_remote_code": trusted})

    with patch.object(reward_loop, "hf_tokenizer", hf_tokenizer):
        wrapped(*args, **kwargs)
