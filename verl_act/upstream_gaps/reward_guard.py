"""Gap: verl asks its reward model only if no custom reward function is set, and does not say so if both are.

`+act=mix` sets our reward function, so a reward model would score nothing: the run is refused. Conversely, a
`reward.custom_reward_function.path` on the user's command line replaces our reward, and would score choices and actions
that it does not know: the run warns. That is not a gap of verl.

Upstream change it waits for: an error in `validate_config` (verl/utils/config.py) where both are set and the function
takes no `reward_router_address`.
"""

import logging
from collections.abc import Callable
from inspect import signature
from typing import Any

from verl_act.errors import ConfigError
from verl_act.upstream_gaps import wrap_when_imported

ROUTE = "pkg://verl_act.reward_fns.route"

logger = logging.getLogger(__name__)


@wrap_when_imported("verl.trainer.ppo.v1.trainer_base:PPOTrainer.__init__")
def check_reward(wrapped: Callable[..., None], trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    config = signature(wrapped).bind(*args, **kwargs).arguments["config"]
    function = config.reward.custom_reward_function
    path = function.get("path")
    others = (function.get("reward_kwargs") or {}).get("other")
    if config.reward.reward_model.get("enable") and path == ROUTE and not others:
        raise ConfigError(
            "reward.reward_model.enable=true has no effect next to the reward of ACT: verl asks the model only if "
            "no reward.custom_reward_function is set, and your rows would get verl's rule-based score. Give a "
            "function that asks the model (verl passes it reward_router_address) as "
            "+reward.custom_reward_function.reward_kwargs.other={path:...,name:...}."
        )
    if config.data.get("custom_cls", {}).get("name") == "ActDataset" and path != ROUTE:
        logger.warning(
            "reward.custom_reward_function.path=%s scores the rows of ACT too, instead of this package's reward. "
            "Unless it calls %s itself, leave it out and give yours as "
            "+reward.custom_reward_function.reward_kwargs.other={path:...,name:...}.",
            path,
            ROUTE,
        )
    wrapped(*args, **kwargs)
