"""The recipes, a recipe of a test, the training stages of a recipe, and verl's configuration with overrides."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from verl_act.chain.plan import run_plan
from verl_act.chain.recipe import RECIPES, Recipe
from verl_act.chain.stages import TrainingStage
from verl_act.run_folder import RunFolder

RECIPE_NAMES = sorted(
    str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml") if path.parent.name != "layers"
)


def write_recipe(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def training(recipe: Recipe, out: Path) -> dict[str, TrainingStage]:
    return {stage.name: stage for stage in run_plan(recipe, RunFolder(out)) if isinstance(stage, TrainingStage)}


def composed(*overrides: str, trainer: str = "ppo_trainer") -> DictConfig:
    """A copy of its own, as verl's checks write to it."""
    return deepcopy(_composed(trainer, overrides))


@cache
def _composed(trainer: str, overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(trainer, overrides=list(overrides))
