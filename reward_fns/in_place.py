"""Say so where rows of ours would be scored by another reward.

`+act=mix` sets our reward, and a `reward.custom_reward_function.path` of the user's own command replaces it without a
word: their function would score choices and actions that it does not know.
"""

import logging
from collections.abc import Callable
from inspect import signature
from types import ModuleType
from typing import Any

import wrapt

ROUTE = "pkg://verl_act.reward_fns.route"

logger = logging.getLogger(__name__)


def warn_when_replaced(module: ModuleType) -> None:
    """Wrap the trainer's start; `module` is verl.trainer.ppo.v1.trainer_base, just imported."""

    def checked(wrapped: Callable[..., None], trainer: Any, args: tuple, kwargs: dict) -> None:
        config = signature(wrapped).bind(*args, **kwargs).arguments["config"]
        own = config.reward.custom_reward_function.get("path")
        if config.data.get("custom_cls", {}).get("name") == "ActDataset" and own != ROUTE:
            logger.warning(
                "reward.custom_reward_function.path=%s scores the rows of ACT too, in place of this package's reward. "
                "Unless it calls %s itself, leave it out and give yours as "
                "+reward.custom_reward_function.reward_kwargs.other={path:...,name:...}.",
                own,
                ROUTE,
            )
        wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "PPOTrainer.__init__", checked)
