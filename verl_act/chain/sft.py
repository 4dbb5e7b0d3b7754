"""Stages of imitation learning and self-reflection: their data, and verl's SFT trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from verl_act.chain.command_line import flat, hydra_value
from verl_act.chain.recipe import Recipe, TrainRecipe
from verl_act.chain.stages import (
    Stage,
    act_stage,
    env_settings,
    model_input,
    pairs_file,
    prompt_options,
    trajectories_file,
)
from verl_act.errors import ConfigError


def reflections_stage(recipe: Recipe, out: Path) -> Stage:
    """The initial model's reflections on the training pairs; all seeds share them."""
    inputs = [trajectories_file(out, recipe.train_split), pairs_file(out, recipe.train_split)]
    options = {
        "model": recipe.model_path,
        "trajectories": inputs[:1],
        "pairs": inputs[1:],
        "temperature": recipe.reflect.temperature,
        "max_tokens": recipe.reflect.max_tokens,
        "max_model_len": recipe.max_model_len,
        "engine_options": recipe.engine_options,
        "env_settings": env_settings(recipe, out),
        "workers": recipe.workers,
        "seed": recipe.seed,
        **prompt_options(recipe),
    }
    folder = out / "reflections"
    inputs += model_input(recipe, recipe.model_path)
    return act_stage("reflections", "reflect", folder, options, inputs=inputs, out=folder)


def rows_stage(recipe: Recipe, out: Path, kind: str, folder: Path) -> Stage:
    """The rows of an `il` or a `reflection` stage, shuffled with the recipe's seed."""
    trajectories = [trajectories_file(out, recipe.train_split)]
    reflections = [out / "reflections" / "reflections.parquet"] if kind == "reflection" else []
    options = {
        "trajectories": trajectories,
        "reflections": reflections,
        "model": recipe.model_path,
        "max_length": recipe.max_model_len,
        "trust_remote_code": recipe.engine_options.get("trust_remote_code"),
        "chat_template_kwargs": recipe.chat_template_kwargs or None,
        "seed": recipe.seed,
        **prompt_options(recipe),
    }
    inputs = [*trajectories, *reflections, *model_input(recipe, recipe.model_path)]
    return act_stage(f"rows {kind}", "make-sft", folder, options, inputs=inputs, out=folder)


def sft_stage(recipe: Recipe, stage: TrainRecipe, rows: Path, model: str, folder: Path) -> Stage:
    """Train `model` with verl's SFT trainer on the rows in the folder `rows`, one process per device.

    Raises `ConfigError` where the overrides request more than one node.
    """
    file = rows / "sft.parquet"
    device = [f"act/device={recipe.device}_sft"] if recipe.device else []
    settings: dict[str, Any] = {
        "data.train_files": [str(file)],
        "data.max_length": recipe.max_model_len,
        "model.path": model,
        **flat(stage.overrides),
    }
    if int(settings.get("trainer.nnodes", 1)) > 1:
        raise ConfigError(
            "trainer.nnodes is more than 1, but the chain runs verl's SFT trainer on one machine. Start torchrun on "
            "each node yourself, as verl's documentation says."
        )
    processes = int(settings.get("trainer.n_gpus_per_node", 1))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"),
        *("-m", "verl.trainer.sft_trainer"),
        *(f"+{group}" for group in [*stage.config, *device]),
        *(f"{key}={hydra_value(value)}" for key, value in settings.items()),
    ]
    return Stage(folder.name, command, folder, [file, *model_input(recipe, model)], trains=True)
