"""Gap: verl's reward workers load the policy's tokenizer with `trust_remote_code=True`, whatever the run's setting.

A model's own code then runs in them even with `actor_rollout_ref.model.trust_remote_code=false`, the default. Here that
key decides, also for the tokenizer of a reward model, which has no such key.

Upstream change it waits for: the configured value in `RewardLoopWorker._init_reward_fn`
(verl/experimental/reward_loop/reward_loop.py).
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import patch

import wrapt


def close_gap(module: ModuleType) -> None:
    """Pass the configured value on; `module` is verl.experimental.reward_loop.reward_loop, just imported."""

    def as_configured(wrapped: Callable[[], None], worker: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        load = module.hf_tokenizer
        trusted = bool(worker.config.actor_rollout_ref.model.get("trust_remote_code", False))

        def load_as_configured(path: str, **options: Any) -> Any:
            return load(path, **{**options, "trust_remote_code": trusted})

        with patch.object(module, "hf_tokenizer", load_as_configured):
            wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "RewardLoopWorker._init_reward_fn", as_configured)
