"""The size of a model, from its `config.json` alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl_act.errors import ConfigError, first_line


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes that decide how much memory a model needs.

    `parameters` counts tied weights once. `kv_values` is the number of values that the KV cache holds for one token.
    """

    model_type: str
    parameters: int
    vocabulary: int
    hidden_size: int
    layers: int
    kv_values: int
    max_positions: int | None


def model_shape(model: str, trust_remote_code: bool = False) -> ModelShape:
    """Read the model's configuration, from a folder or the hub, and count its parameters without loading weights.

    Raises `ConfigError` if it cannot be read, or describes no model that generates text.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        in_text = type(config) in AutoModelForCausalLM._model_mapping
        build: Any = AutoModelForCausalLM if in_text or trust_remote_code else AutoModelForImageTextToText
        with torch.device("meta"):
            skeleton = build.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # damaged files and missing networks raise errors of many types
        raise ConfigError(
            f"{model}: its config.json cannot be read ({first_line(error)}). Download the model first."
        ) from error
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(
        model_type=config.model_type,
        parameters=sum(weight.numel() for weight in skeleton.parameters()),
        vocabulary=text.vocab_size,
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        kv_values=2 * text.num_hidden_layers * heads * head_size,
        max_positions=getattr(text, "max_position_embeddings", None),
    )
