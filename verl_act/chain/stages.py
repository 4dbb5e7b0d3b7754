"""From a recipe to its stages: which command, reading what, writing where."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_act.chain.recipe import Recipe, TrainRecipe


@dataclass(frozen=True, slots=True)
class Stage:
    """One command. `inputs` are hashed to tell whether the stage is up to date; `output` must exist once it is done.

    `trains` marks a verl run, which leaves a model at `output / "model"` and can go on from its checkpoints.
    """

    name: str
    command: Sequence[str]
    output: Path
    inputs: Sequence[Path] = ()
    trains: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def stages(recipe: Recipe, out: Path) -> list[Stage]:
    """All stages in the order they run."""
    return [*_data(recipe, out), *_training(recipe, out), *_evaluation(recipe, out)]


def _data(recipe: Recipe, out: Path) -> list[Stage]:
    found = []
    sources: list[Path] = []
    if recipe.games.counts is not None:
        games = out / "games"
        counts = {split: recipe.games.counts[split] for split in recipe.games.counts}
        options = {"counts": counts, "size": recipe.games.size, "seed": recipe.games.seed, "workers": recipe.workers}
        found.append(Stage("games", _command("make-games", games, options), games))
        sources = [games]
    for split in _splits(recipe):
        options = {
            "expert": recipe.expert.name,
            "limit": recipe.expert.limits.get(split),
            "seed": recipe.seed,
            "workers": recipe.workers,
            "env_settings": _env_settings(recipe, out),
        }
        command = [*_command("collect-expert", out / "expert" / split, options), recipe.env, split]
        found.append(Stage(f"expert {split}", command, out / "expert" / split, sources))
    trajectories = [_trajectories(out, split) for split in _splits(recipe)]
    options = {
        "model": recipe.model_path,
        "n": recipe.alternatives.n,
        "temperature": recipe.alternatives.temperature,
        "max_tokens": recipe.alternatives.max_tokens,
        "max_model_len": recipe.max_model_len,
        "engine_options": recipe.engine_options,
        "trajectories": trajectories,
        "seed": recipe.seed,
        **_prompt(recipe),
    }
    sampled = out / "alternatives"
    found.append(Stage("alternatives", _command("sample-alternatives", sampled, options), sampled, trajectories))
    for split in _splits(recipe):
        options = {
            "trajectories": [_trajectories(out, split)],
            "alternatives": [sampled / "alternatives.parquet"],
            "env_settings": _env_settings(recipe, out),
            "settings": {"seed": recipe.seed, **recipe.pairs},
        }
        inputs = [_trajectories(out, split), sampled, *sources]
        folder = out / "pairs" / split
        found.append(Stage(f"pairs {split}", _command("build-pairs", folder, options), folder, inputs))
    audited = [_pairs(out, split) for split in _splits(recipe)]
    options = {"pairs": audited[:1], "held_out": audited[1:], "template": recipe.prompt.template, "seed": recipe.seed}
    found.append(Stage("audit", _command("check-pairs", None, options), audited[0], audited))
    for name, splits, limit in (
        ("train", [recipe.train_split], None),
        ("panel", recipe.valid_splits, recipe.evaluate.tasks),
    ):
        options = {"splits": splits, "limit": limit, "seed": recipe.seed, "env_settings": _env_settings(recipe, out)}
        folder = out / "tasks" / name
        command = [*_command("make-tasks", folder, options), recipe.env]
        found.append(Stage(f"tasks {name}", command, folder, sources))
    return found


def _training(recipe: Recipe, out: Path) -> list[Stage]:
    valid = recipe.valid_splits
    if recipe.action.data == "episodes":
        train, panel = [out / "tasks" / "train" / "tasks.parquet"], [out / "tasks" / "panel" / "tasks.parquet"]
    else:
        train = [_trajectories(out, recipe.train_split)]
        panel = [_trajectories(out, split) for split in valid]
    pairs = [_pairs(out, recipe.train_split)], [_pairs(out, split) for split in valid]
    return [
        _train(recipe, out, "critic", recipe.critic, recipe.model_path, *pairs),
        _train(recipe, out, "action", recipe.action, str(out / "critic" / "model"), train, panel),
    ]


def _train(
    recipe: Recipe, out: Path, name: str, stage: TrainRecipe, model: str, train: list[Path], valid: list[Path]
) -> Stage:
    device = [f"act/device={recipe.device}"] if recipe.device else []
    settings = {
        "data.train_files": [str(path) for path in train],
        "data.val_files": [str(path) for path in valid],
        "data.seed": recipe.seed,
        "data.act.template": recipe.prompt.template,
        "data.act.history_length": recipe.prompt.options.get("history_length"),
        "++data.act.template_options": {
            name: value for name, value in recipe.prompt.options.items() if name != "history_length"
        },
        "data.act.seed": recipe.seed,
        "++data.act.episode.env_settings": _env_settings(recipe, out),
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.rollout.max_model_len": recipe.max_model_len,
        **_flat(stage.overrides),
    }
    if "action_ppo" in " ".join(stage.config):
        settings.setdefault("critic.model.path", model)
    command = [
        *(sys.executable, "-m", "verl.trainer.main_ppo"),
        *(f"+{group}" for group in [*stage.config, *device]),
        *(f"{key}={_hydra_value(value)}" for key, value in settings.items()),
    ]
    inputs = [*train, *valid, *([Path(model)] if Path(model).is_dir() or name == "action" else [])]
    return Stage(name, command, out / name, inputs, trains=True)


def _evaluation(recipe: Recipe, out: Path) -> list[Stage]:
    models = {
        "initial": recipe.model_path,
        "critic": str(out / "critic" / "model"),
        "action": str(out / "action" / "model"),
    }
    panel = out / "tasks" / "panel" / "tasks.parquet"
    trajectories = [_trajectories(out, split) for split in recipe.valid_splits]
    pairs = [_pairs(out, split) for split in recipe.valid_splits]
    found = []
    for name, model in models.items():
        options = {
            "model": model,
            "name": name,
            "tasks": [panel],
            "trajectories": trajectories,
            "pairs": pairs,
            "temperature": recipe.evaluate.temperature,
            "max_turns": recipe.evaluate.max_turns,
            "max_tokens": recipe.alternatives.max_tokens,
            "max_model_len": recipe.max_model_len,
            "engine_options": recipe.engine_options,
            "env_settings": _env_settings(recipe, out),
            "limit": recipe.evaluate.limit,
            "seed": recipe.seed,
            **_prompt(recipe),
        }
        folder = out / "evaluation" / name
        inputs = [panel, *trajectories, *pairs, *([Path(model)] if name != "initial" or Path(model).is_dir() else [])]
        found.append(Stage(f"evaluate {name}", _command("evaluate", folder, options), folder, inputs))
    folders = [out / "evaluation" / name for name in models]
    command = [*_command("compare", out / "comparison", {}), *map(str, folders)]
    found.append(Stage("comparison", command, out / "comparison", folders))
    page = out / "report.html"
    found.append(Stage("report", [*_command("report", page, {}), str(out)], page, [*folders, out / "comparison"]))
    return found


def _splits(recipe: Recipe) -> list[str]:
    return [recipe.train_split, *recipe.valid_splits]


def _trajectories(out: Path, split: str) -> Path:
    return out / "expert" / split / "trajectories.parquet"


def _pairs(out: Path, split: str) -> Path:
    return out / "pairs" / split / "pairs.parquet"


def _env_settings(recipe: Recipe, out: Path) -> dict[str, Any]:
    generated = {"data": str((out / "games").absolute())} if recipe.games.counts is not None else {}
    return {**generated, **recipe.env_settings}


def _prompt(recipe: Recipe) -> dict[str, Any]:
    return {"template": recipe.prompt.template, "template_options": recipe.prompt.options}


def _command(name: str, out: Path | None, options: dict[str, Any]) -> list[str]:
    words = [sys.executable, "-m", "verl_act", name]
    if out is not None:
        words += ["--out", str(out)]
    for key, value in options.items():
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, list):
            words += [word for item in value for word in (option, str(item))]
        elif isinstance(value, dict):
            words += [option, json.dumps(value)]
        elif value is not None:
            words += [option, str(value)]
    return words


def _flat(overrides: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested override keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in overrides.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _hydra_value(value: Any) -> str:
    """A value in Hydra's override grammar, in which JSON is almost at home: keys of a mapping stand without quotes."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra_value, value)) + "]"
    return json.dumps(value)
