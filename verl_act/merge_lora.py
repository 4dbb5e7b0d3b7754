"""Gap: the Hugging Face export of a LoRA run has PEFT's names and unmerged adapters, and loads as random weights.

`merge_lora` merges the adapters, with PEFT itself, so that the export is the model that was trained. The chain calls it
after every training stage; by hand: `python -m verl_act merge-lora CHECKPOINT/actor`.

Upstream change it waits for: `FSDPCheckpointManager.save_checkpoint` merging adapters into `hf_model`
(verl/utils/checkpoint/fsdp_checkpoint_manager.py).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.output_folder import atomic_folder, reserved

_META = "lora_train_meta.json"
_PREFIX = "base_model.model."
_ADAPTER = ".lora_A."


def merge_lora(checkpoint: str | os.PathLike[str]) -> bool:
    """Merge the adapters in `checkpoint/huggingface`; False where there are none, or they are merged already.

    `checkpoint` is the `actor` folder of a verl checkpoint, with `hf_model` among its contents. The model folder is
    replaced as a whole, and found again where that was cut short. Raises `DataError` where it is incomplete.
    """
    folder = Path(checkpoint) / "huggingface"
    meta = Path(checkpoint) / _META
    if folder.parent.is_dir():
        with reserved(folder, replace_any=True):
            return _merge(folder, meta)
    raise DataError(f"{folder}: no exported model; add hf_model to actor.checkpoint.save_contents.")


def _merge(folder: Path, meta: Path) -> bool:
    if not folder.is_dir():
        raise DataError(f"{folder}: no exported model; add hf_model to actor.checkpoint.save_contents.")
    if not meta.is_file():
        return False
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    weights: dict[str, Any] = {name: value for path in files for name, value in load_file(path).items()}
    targets = sorted({name.split(_ADAPTER)[0].removeprefix(_PREFIX) for name in weights if _ADAPTER in name})
    if not targets:
        return False
    model = _merged(folder, weights, targets, json.loads(meta.read_text()))
    with atomic_folder(folder, replace_any=True) as partial:
        for path in folder.iterdir():
            if path not in files and path.name != "model.safetensors.index.json":
                copy = shutil.copytree if path.is_dir() else shutil.copyfile
                copy(path, partial / path.name)
        model.save_pretrained(partial)
    return True


def _merged(folder: Path, weights: dict[str, Any], targets: list[str], meta: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForCausalLM.from_config(config, dtype=next(iter(weights.values())).dtype)
    tied = {f"{_PREFIX}{name}" for name in getattr(base, "_tied_weights_keys", None) or ()}
    model = get_peft_model(base, LoraConfig(r=meta["r"], lora_alpha=meta["lora_alpha"], target_modules=targets))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    lost = [*(name for name in missing if not (config.tie_word_embeddings and name in tied)), *unexpected]
    if lost:
        raise DataError(f"{folder}: {lost[0]!r} does not fit {_META}'s adapters; save the checkpoint again.")
    return model.merge_and_unload()
