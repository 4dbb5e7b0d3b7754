"""Gap: verl loads a value model with `attn_implementation="flash_attention_2"`, whatever the configuration says.

PPO then needs flash-attn, and a GPU, even with `+critic.model.override_config.attn_implementation=sdpa`. While verl
loads the value model, the configured implementation takes its place.

Upstream change it waits for: `load_valuehead_model` in verl/utils/model.py reading the attention implementation
from the model configuration, as verl's other loaders do.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import wrapt

from verl_act.upstream_gaps import wrap_when_imported


@wrap_when_imported("verl.utils.model:load_valuehead_model")
def load_as_configured(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    from transformers import PreTrainedModel

    config = signature(wrapped).bind(*args, **kwargs).arguments["model_config"]

    @wrapt.transient_function_wrapper(PreTrainedModel, "from_pretrained")
    def from_pretrained(load: Callable[..., Any], _class: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return load(*args, **{**kwargs, "attn_implementation": config._attn_implementation})

    return from_pretrained(wrapped)(*args, **kwargs)
