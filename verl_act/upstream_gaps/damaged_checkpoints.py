"""Gap: verl resumes from the checkpoint that its tracker file names, complete or not.

A run that is killed while it saves leaves a truncated checkpoint, or a complete one that the tracker does not name yet;
disks lose files too. Before verl loads a checkpoint, this module finds the newest complete one and updates the tracker.
With `trainer.max_actor_ckpt_to_keep: 2` (for SFT `max_ckpt_to_keep`), as in our configurations, there is always a
complete one while the next is written.

Upstream change it waits for: `find_latest_ckpt_path` validating what it returns
(verl/utils/checkpoint/checkpoint_manager.py).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from verl_act.upstream_gaps import wrap_when_imported

logger = logging.getLogger(__name__)

TRACKER = "latest_checkpointed_iteration.txt"
CONTENTS = ("model", "optimizer", "extra", "hf_model")
"""Contents of a checkpoint in our configurations, as named in verl's `checkpoint.save_contents`."""
EXPORTS = ("huggingface", "model/huggingface")
DAMAGED = "damaged_step_"
_STEP = "global_step_"
_SHARDS = {"model": "model", "optimizer": "optim", "extra": "extra_state"}
"""Content -> prefix of verl's file for each rank."""


def step_of(path: Path) -> int:
    """The step of a checkpoint, or of a path below its `global_step_` folder."""
    return next(int(name.removeprefix(_STEP)) for name in path.parts[::-1] if name.startswith(_STEP))


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    named = [path for path in folder.glob(f"{_STEP}*") if path.name.removeprefix(_STEP).isdecimal()]
    return sorted(named, key=step_of)


def exported_model(folder: Path) -> Path | None:
    """The Hugging Face export in `folder`, the part of a checkpoint that holds one model; None if there is none.

    verl's FSDP engine exports to `huggingface`, Megatron to `model/huggingface`.
    """
    return next((folder / name for name in EXPORTS if (folder / name).is_dir()), None)


def exported_models(folder: Path) -> list[Path]:
    """Exports of all checkpoints in `folder`, oldest first. The RL trainer has them below `actor`, SFT does not."""
    parts = (part for checkpoint in checkpoints_in(folder) for part in (checkpoint / "actor", checkpoint))
    return [model for part in parts if (model := exported_model(part))]


def resume_from_complete(folder: Path, contents: Collection[str] = CONTENTS) -> Path | None:
    """Point verl's tracker in `folder` to the newest complete checkpoint and return it; None if there is none.

    `contents` is what a checkpoint must hold. Newer damaged checkpoints are logged and left alone.
    """
    for checkpoint in reversed(checkpoints_in(folder)):
        fault = fault_of(checkpoint, contents)
        if not fault:
            _track(folder, str(step_of(checkpoint)))
            return checkpoint
        logger.warning("%s is incomplete (%s); the run does not resume from it.", checkpoint, fault)
    (folder / TRACKER).unlink(missing_ok=True)
    return None


def tidy(folder: Path, contents: Collection[str] = CONTENTS, keep: int | None = None) -> Path | None:
    """As `resume_from_complete`, but also clean up, since verl does not delete checkpoints of a killed attempt.

    Damaged checkpoints are renamed to `damaged_step_<step>`; the newest `keep` complete ones stay (None: all).
    """
    newest = resume_from_complete(folder, contents)
    for path in folder.glob(f"{DAMAGED}*"):
        shutil.rmtree(path, ignore_errors=True)
    good = []
    for checkpoint in checkpoints_in(folder):
        if fault_of(checkpoint, contents):
            os.replace(checkpoint, checkpoint.with_name(f"{DAMAGED}{step_of(checkpoint)}"))
        else:
            good.append(checkpoint)
    for checkpoint in good[: -keep if keep else 0]:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return newest


def fault_of(checkpoint: Path, contents: Collection[str] = CONTENTS) -> str:
    """Why verl could not resume from a checkpoint; empty if it is complete.

    Files are not read completely: this detects what a kill, a full disk or a deleted file leaves behind.
    """
    actor, critic = checkpoint / "actor", checkpoint / "critic"
    trains_critic = any((other / "critic").is_dir() for other in checkpoints_in(checkpoint.parent))
    is_rl = actor.is_dir() or trains_critic
    first = actor if is_rl else checkpoint
    faults = [_fault_of_model(first, contents)]
    if trains_critic:
        faults.append(_fault_of_model(critic, [entry for entry in contents if entry != "hf_model"]))
    loaders = [checkpoint / "data.pt"] if is_rl else sorted(checkpoint.glob("data_*.pt")) or [checkpoint / "data_0.pt"]
    faults += map(_fault_of_archive, loaders)
    return next(filter(None, faults), "")


def _fault_of_model(folder: Path, contents: Collection[str]) -> str:
    if (folder / "model").is_dir():  # Megatron's layout, complete once the tracker names it
        tracker = folder.parents[folder.name in ("actor", "critic")] / TRACKER
        complete = tracker.is_file() and tracker.read_text(encoding="utf-8").strip()
        return "" if complete and complete.isdecimal() and step_of(folder) <= int(complete) else f"{TRACKER} is older"
    try:
        ranks = range(json.loads((folder / "fsdp_config.json").read_text(encoding="utf-8"))["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder / 'fsdp_config.json'} is missing or damaged"
    for content, prefix in _SHARDS.items():
        if content in contents:
            for rank in ranks:
                if fault := _fault_of_archive(folder / f"{prefix}_world_size_{len(ranks)}_rank_{rank}.pt"):
                    return fault
    return _fault_of_export(folder / "huggingface") if "hf_model" in contents else ""


def _fault_of_archive(path: Path) -> str:
    """The fault of a `torch.save` file, a zip archive whose directory is written last; empty if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            complete = any(name.endswith("data.pkl") for name in archive.namelist())
    except FileNotFoundError:
        return f"{path} is missing"
    except (OSError, ValueError, zipfile.BadZipFile):
        complete = False
    return "" if complete else f"{path} is cut or damaged"


def _fault_of_export(folder: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        index = folder / "model.safetensors.index.json"
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.exists() else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{folder}: its JSON files are missing or damaged"
    weights = [folder / name for name in sorted(names)] or sorted(folder.glob("*.safetensors"))
    if not weights:
        return f"{folder} has no weights"
    for path in weights:
        try:
            with safe_open(path, "np"):
                pass
        except (OSError, SafetensorError):
            return f"{path} is missing, cut or damaged"
    return ""


def _track(folder: Path, step: str) -> None:
    tracker = folder / TRACKER
    if not tracker.is_file() or tracker.read_text(errors="replace", encoding="utf-8").strip() != step:
        partial = folder / f"{TRACKER}.tmp"
        partial.write_text(step, encoding="utf-8")
        os.replace(partial, tracker)


def _contents(config: Any) -> list[str]:
    """What verl loads of a checkpoint, and the export if it is saved."""
    config = config or {}
    loaded = list(config.get("load_contents") or _SHARDS)
    return [*loaded, *(["hf_model"] if "hf_model" in (config.get("save_contents") or ()) else [])]


@wrap_when_imported("verl.trainer.ppo.v1.trainer_base:PPOTrainer._load_checkpoint")
def load_complete(wrapped: Callable[[], None], trainer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    config = trainer.config.trainer
    if config.resume_mode == "auto":
        resume_from_complete(
            Path(config.default_local_dir), _contents(trainer.config.actor_rollout_ref.actor.checkpoint)
        )
    wrapped(*args, **kwargs)


@wrap_when_imported("verl.utils.checkpoint.checkpoint_handler:CheckpointHandler._find_latest_checkpoint")
def find_complete(
    wrapped: Callable[[], str | None], handler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """The same for SFT, whose processes may look only once the first has updated the tracker."""
    import torch
    from verl.utils.checkpoint.checkpoint_handler import OrchestrationMode

    if handler.rank == 0:
        config = getattr(handler.engine, "checkpoint_config", None)
        resume_from_complete(Path(handler.default_local_dir), _contents(config))
    if handler.mode == OrchestrationMode.SPMD:
        torch.distributed.barrier()
    return wrapped(*args, **kwargs)
