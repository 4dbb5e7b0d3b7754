"""Gap: verl loads a value model with `attn_implementation="flash_attention_2"`, whatever the configuration says.

FlashAttention needs a GPU. While verl loads the value model, "sdpa" takes its place.

Upstream change it waits for: `load_valuehead_model` in verl/utils/model.py reading the attention implementation
from the model configuration, as verl's other loaders do.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import patch

import wrapt

MODULE = "verl.utils.model"


def close_gap() -> None:
    """Patch the module when it is imported."""
    wrapt.when_imported(MODULE)(_patch)


def _patch(module: ModuleType) -> None:
    wrapt.wrap_function_wrapper(module, "load_valuehead_model", _load_with_sdpa)


def _load_with_sdpa(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from transformers import PreTrainedModel

    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: type, *load_args: Any, **load_kwargs: Any) -> Any:
        if load_kwargs.get("attn_implementation") == "flash_attention_2":
            load_kwargs["attn_implementation"] = "sdpa"
        return load(cls, *load_args, **load_kwargs)

    with patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        return wrapped(*args, **kwargs)
