"""Say so where rows of ours would be scored by another reward, or others by ours.

`+act=mix` sets our reward, and a `reward.custom_reward_function.path` of the user's own command replaces it without a
word: their function would score choices and actions that it does not know. The other way round, verl asks its reward
model only where no such function is set: beside ours it would score nothing.
"""

import logging
from collections.abc import Callable
from inspect import signature
from types import ModuleType
from typing import Any

import wrapt

from verl_act.errors import ConfigError

ROUTE = "pkg://verl_act.reward_fns.route"

logger = logging.getLogger(__name__)


def warn_when_replaced(module: ModuleType) -> None:
    """Wrap the trainer's start; `module` is verl.trainer.ppo.v1.trainer_base, just imported."""

    def checked(wrapped: Callable[..., None], trainer: Any, args: tuple, kwargs: dict) -> None:
        config = signature(wrapped).bind(*args, **kwargs).arguments["config"]
        function = config.reward.custom_reward_function
        own = function.get("path")
        others = (function.get("reward_kwargs") or {}).get("other")
        if config.reward.reward_model.get("enable") and own == ROUTE and not others:
            raise ConfigError(
                "reward.reward_model.enable=true has no effect beside the reward of ACT: verl asks the model where "
                "no reward.custom_reward_function is set, and your rows would get verl's rule-based score. Give a "
                "function that asks the model (verl passes it reward_router_address) as "
                "+reward.custom_reward_function.reward_kwargs.other={path:...,name:...}."
            )
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
