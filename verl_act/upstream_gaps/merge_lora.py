"""Gap: the Hugging Face export of a LoRA run has PEFT's names and unmerged adapters, and loads as random weights.

`merge_lora` merges the adapters with PEFT, so that the export is the trained model. The chain calls it
after every training stage; by hand: `verl-act dev merge-lora CHECKPOINT/actor`.

Upstream change it waits for: `FSDPCheckpointManager.save_checkpoint` merging adapters into `hf_model`
(verl/utils/checkpoint/fsdp_checkpoint_manager.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.output_folder import atomic_folder, reserved
from verl_act.upstream_gaps.damaged_checkpoints import exported_model

_META = "lora_train_meta.json"
_PREFIX = "base_model.model."
_ADAPTER = ".lora_A."


def merge_lora(checkpoint: str | os.PathLike[str]) -> bool:
    """Merge the adapters in a checkpoint's export; False if there are none, or they are merged already.

    `checkpoint` is the `actor` folder of a verl checkpoint, with `hf_model` among its contents, or Megatron's
    `actor/model`. The model folder is
    replaced atomically, also after an interrupted attempt. Raises `DataError` if it, or verl's description of the
    adapters next to it, is missing or damaged.
    """
    folder = exported_model(Path(checkpoint)) or Path(checkpoint) / "huggingface"
    if folder.parent.is_dir():
        with reserved(folder, replace_any=True):
            if folder.is_dir():
                return _merge(folder, folder.parent / _META)
    raise DataError(f"{folder}: no exported model; {_where_else(Path(checkpoint))}")


def _where_else(checkpoint: Path) -> str:
    """Advice if the folder is not the `actor` folder of a checkpoint with an export."""
    if checkpoint.name == "huggingface" or any(checkpoint.glob("*.safetensors")):
        return f"pass the folder that holds it as `huggingface`, next to {_META}: {checkpoint.absolute().parent}."
    if below := sorted(checkpoint.glob("**/huggingface")):
        return f"pass the folder that holds it: {', '.join(str(path.parent) for path in below)}."
    return "add hf_model to actor.checkpoint.save_contents (for SFT checkpoint.save_contents), and save a checkpoint."


def _merge(folder: Path, meta: Path) -> bool:
    files = sorted(folder.glob("*.safetensors"))
    if not files and meta.is_file():
        raise DataError(f"{folder}: holds no weights (*.safetensors). Save the checkpoint again.")
    weights = _weights(files)
    targets = sorted({name.split(_ADAPTER)[0].removeprefix(_PREFIX) for name in weights if _ADAPTER in name})
    if not targets:
        return False
    rank = next(int(value.shape[0]) for name, value in weights.items() if _ADAPTER in name)
    model = _merged(folder, weights, targets, _settings(meta, rank))
    with atomic_folder(folder, replace_any=True) as partial:
        for path in folder.iterdir():
            if path not in files and path.name != "model.safetensors.index.json":
                copy = shutil.copytree if path.is_dir() else shutil.copyfile
                copy(path, partial / path.name)
        model.save_pretrained(partial)
    return True


def _weights(files: Sequence[Path]) -> dict[str, Any]:
    """All weights if some are adapters; else their names only, without loading."""
    from safetensors import SafetensorError, safe_open

    weights: dict[str, Any] = {}
    for read in (False, True):
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    names = file.keys()
                    weights |= {name: file.get_tensor(name) if read else None for name in names}
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path}: cannot be read ({error}). Save the checkpoint again.") from error
        if not any(_ADAPTER in name for name in weights):
            break
    return weights


def _settings(meta: Path, rank: int) -> dict[str, int]:
    """Rank and alpha of the adapters, which verl writes next to the export; the weights only have the rank."""
    remedy = (
        f'Copy it from the checkpoint, or write {{"r": {rank}, "lora_alpha": ALPHA}} with the alpha of the run '
        "(actor_rollout_ref.model.lora_alpha, for SFT model.lora_alpha)."
    )
    try:
        content = json.loads(meta.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{meta}: missing, and without it the adapters cannot be merged. {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{meta}: cannot be read as JSON ({error}). {remedy}") from error
    values = content if isinstance(content, dict) else {}
    for key in ("r", "lora_alpha"):
        if type(values.get(key)) is not int or values[key] < 1:
            raise DataError(f"{meta}: {key!r} is {values.get(key)!r}; it must be a positive whole number. {remedy}")
    if values["r"] != rank:
        raise DataError(f"{meta}: 'r' is {values['r']}, and the adapters are of rank {rank}. {remedy}")
    return values


def _merged(folder: Path, weights: dict[str, Any], targets: list[str], meta: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # damaged files raise errors of many types
        raise DataError(f"{folder / 'config.json'}: cannot be read ({error}). Save the checkpoint again.") from error
    base = AutoModelForCausalLM.from_config(config, dtype=next(iter(weights.values())).dtype)
    tied = {f"{_PREFIX}{name}" for name in getattr(base, "_tied_weights_keys", None) or ()}
    model = get_peft_model(base, LoraConfig(r=meta["r"], lora_alpha=meta["lora_alpha"], target_modules=targets))
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # sizes differ
        raise DataError(f"{folder}: the weights do not fit config.json: {error}. Save the checkpoint again.") from error
    lost = [*(name for name in missing if not (config.tie_word_embeddings and name in tied)), *unexpected]
    if lost:
        raise DataError(f"{folder}: {lost[0]!r} does not fit {_META}'s adapters; save the checkpoint again.")
    return model.merge_and_unload()
