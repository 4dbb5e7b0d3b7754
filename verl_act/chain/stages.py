"""The stages of a recipe: command, inputs and output of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_act.chain.command_line import act_command, flat, hydra_value
from verl_act.chain.recipe import Recipe, TrainRecipe
from verl_act.data_prep.expert.collect_expert import input_folders
from verl_act.errors import ConfigError
from verl_act.evaluate.files import FILES
from verl_act.learning_signal import SWITCH


@dataclass(frozen=True, slots=True)
class Stage:
    """One command. `inputs` are hashed to decide whether the stage is up to date; `output` must exist when it is done.

    `trains` marks a verl run, which writes a model to `output / "model"` and resumes from its checkpoints. `call` holds
    the options of a command of this package, so that they can be validated before anything runs.
    """

    name: str
    command: Sequence[str]
    output: Path
    inputs: Sequence[Path] = ()
    trains: bool = False
    call: Call | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A command of this package, with its options and arguments by name (`max_tokens`)."""

    command: str
    options: Mapping[str, Any]


def act_stage(
    name: str,
    command: str,
    output: Path,
    options: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    inputs: Sequence[Path] = (),
    out: Path | None = None,
) -> Stage:
    """`python -m verl_act COMMAND` as a stage. `arguments` are positional; `out` is the value of `--out`, if any."""
    arguments = arguments or {}
    words = act_command(command, out, options)
    for value in arguments.values():
        words += map(str, value) if isinstance(value, list) else [str(value)]
    return Stage(name, words, output, inputs, call=Call(command, {**options, **arguments}))


def stages(recipe: Recipe, out: Path) -> list[Stage]:
    """All stages in execution order.

    The initial model is evaluated before training, so that a broken evaluation shows within minutes.
    """
    initial, *trained = _evaluation(recipe, out)
    return [*data_stages(recipe, out), initial, *_training(recipe, out), *trained]


def data_stages(recipe: Recipe, out: Path) -> list[Stage]:
    """Games, expert trajectories, alternatives, pairs and tasks: everything that does not depend on training."""
    planned = []
    sources = input_folders(env_settings(recipe, out))
    if recipe.games.counts is not None:
        games = out / "games"
        made: dict[str, Any] = asdict(recipe.games)
        options = {**made, "workers": recipe.workers}
        planned.append(act_stage("games", "make-games", games, options, out=games))
        sources = [games]
    planned += [_expert_stage(recipe, out, split, sources) for split in all_splits(recipe)]
    trajectories = [trajectories_file(out, split) for split in all_splits(recipe)]
    options = {
        "model": recipe.model_path,
        "n": recipe.alternatives.n,
        "temperature": recipe.alternatives.temperature,
        "max_tokens": recipe.alternatives.max_tokens,
        "limit": recipe.alternatives.limit,
        "workers": recipe.alternatives.workers or None,
        "gpus_per_worker": recipe.alternatives.gpus_per_worker if recipe.alternatives.workers else None,
        "max_model_len": recipe.max_model_len,
        "engine_options": recipe.engine_options,
        SWITCH: recipe.allow_degenerate,
        "trajectories": trajectories,
        "seed": recipe.seed,
        **prompt_options(recipe),
    }
    sampled = out / "alternatives"
    inputs = [*trajectories, *model_input(recipe, recipe.model_path)]
    planned.append(act_stage("alternatives", "sample-alternatives", sampled, options, inputs=inputs, out=sampled))
    for split in all_splits(recipe):
        files = [trajectories_file(out, split), sampled / "alternatives.parquet"]
        options = {
            "trajectories": files[:1],
            "alternatives": files[1:],
            "env_settings": env_settings(recipe, out),
            "workers": recipe.workers,
            "settings": {"seed": recipe.seed, **recipe.pairs},
        }
        folder = out / "pairs" / split
        inputs = [*files, *sources]
        planned.append(act_stage(f"pairs {split}", "build-pairs", folder, options, inputs=inputs, out=folder))
    audited = [pairs_file(out, split) for split in all_splits(recipe)]
    options = {
        "pairs": audited[:1],
        "held_out": audited[1:],
        "seed": recipe.seed,
        "bounds": recipe.audit,
        **prompt_options(recipe),
    }
    planned.append(act_stage("audit", "check-pairs", audited[0], options, inputs=audited))
    for name, splits, limit in (
        ("train", [recipe.train_split], None),
        ("panel", recipe.valid_splits, recipe.evaluate.tasks),
    ):
        options = {"splits": splits, "limit": limit, "seed": recipe.seed, "env_settings": env_settings(recipe, out)}
        folder = out / "tasks" / name
        arguments = {"env": recipe.env}
        planned.append(act_stage(f"tasks {name}", "make-tasks", folder, options, arguments, sources, out=folder))
    return planned


def _expert_stage(recipe: Recipe, out: Path, split: str, sources: Sequence[Path]) -> Stage:
    """The expert plays the tasks of `split`; or the trajectories in the recipe's files for that split are replayed."""
    folder, settings = out / "expert" / split, env_settings(recipe, out)
    if files := [Path(file).absolute() for file in recipe.expert.files.get(split, ())]:
        options: dict[str, Any] = {
            "format": recipe.expert.format,
            "split": split,
            "workers": recipe.workers,
            "env_settings": settings,
        }
        arguments: dict[str, Any] = {"env": recipe.env, "files": files}
        inputs = [*files, *sources]
        return act_stage(f"expert {split}", "import-trajectories", folder, options, arguments, inputs, out=folder)
    options = {
        "expert": recipe.expert.name,
        "limit": recipe.expert.limits.get(split),
        "seed": recipe.seed,
        "workers": recipe.workers,
        "env_settings": settings,
    }
    arguments = {"env": recipe.env, "split": split}
    return act_stage(f"expert {split}", "collect-expert", folder, options, arguments, sources, out=folder)


def _training(recipe: Recipe, out: Path) -> list[Stage]:
    critic = str(out / "critic" / "model")
    return [
        rl_stage(recipe, out, "critic", recipe.critic, recipe.model_path, out / "critic"),
        rl_stage(recipe, out, "action", recipe.action, critic, out / "action"),
    ]


def rl_stage(recipe: Recipe, out: Path, kind: str, stage: TrainRecipe, model: str, folder: Path) -> Stage:
    """A verl RL run of `kind` (critic or action) that starts from `model`, reads data in `out` and writes `folder`.

    Raises `ConfigError` where a Hydra group of the stage would change the prompts of training alone.
    """
    train, valid = _training_files(recipe, out, kind)
    if groups := [group for group in stage.config if group.startswith("act/env=")]:
        raise ConfigError(
            f"{kind}.config has {groups[0]!r}, which would change the prompts of training alone. Set the recipe's "
            "prompt.options, which all stages share."
        )
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
        "++data.act.episode.env_settings": env_settings(recipe, out),
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.rollout.max_model_len": recipe.max_model_len,
        **({f"data.act.{SWITCH}": True} if recipe.allow_degenerate else {}),
        **(_episode_settings(recipe) if kind == "action" and recipe.action.data == "episodes" else {}),
        **flat(stage.overrides),
    }
    if "action_ppo" in " ".join(stage.config):
        settings.setdefault("critic.model.path", model)
    command = [
        *(sys.executable, "-m", "verl.trainer.main_ppo"),
        *(f"+{group}" for group in [*stage.config, *device]),
        *(f"{key}={hydra_value(value)}" for key, value in settings.items()),
    ]
    return Stage(folder.name, command, folder, [*train, *valid, *model_input(recipe, model)], trains=True)


def _episode_settings(recipe: Recipe) -> dict[str, Any]:
    """The evaluation's episode settings, so that training and evaluation agree."""
    return {
        "data.act.episode.mode": recipe.evaluate.mode,
        "data.act.episode.max_turns": recipe.evaluate.max_turns,
        "data.act.episode.max_tokens_per_turn": max_tokens(recipe),
    }


def max_tokens(recipe: Recipe) -> int:
    """Most tokens of a reply in an evaluation."""
    limit = recipe.evaluate.max_tokens
    return recipe.alternatives.max_tokens if limit is None else limit


def model_input(recipe: Recipe, model: str) -> list[Path]:
    """The model's folder as an input to hash; empty for an initial model from a hub."""
    return [Path(model)] if model != recipe.model_path or Path(model).is_dir() else []


def _training_files(recipe: Recipe, out: Path, kind: str) -> tuple[list[Path], list[Path]]:
    valid = recipe.valid_splits
    if kind == "critic":
        return [pairs_file(out, recipe.train_split)], [pairs_file(out, split) for split in valid]
    if recipe.action.data == "episodes":
        return [out / "tasks" / "train" / "tasks.parquet"], [out / "tasks" / "panel" / "tasks.parquet"]
    return [trajectories_file(out, recipe.train_split)], [trajectories_file(out, split) for split in valid]


def _evaluation(recipe: Recipe, out: Path) -> list[Stage]:
    models = {
        "initial": recipe.model_path,
        "critic": str(out / "critic" / "model"),
        "action": str(out / "action" / "model"),
    }
    planned = [evaluation_stage(recipe, out, name, model, out / "evaluation" / name) for name, model in models.items()]
    folders = [stage.output for stage in planned]
    answers = [file for folder in folders for file in answer_files(folder)]
    table = out / "comparison"
    planned.append(act_stage("comparison", "compare", table, {}, {"evaluations": folders}, answers, out=table))
    page = out / "report.html"
    planned.append(act_stage("report", "report", page, {}, {"runs": [out]}, [*answers, table], out=page))
    return planned


def evaluation_stage(recipe: Recipe, out: Path, name: str, model: str, folder: Path) -> Stage:
    """Evaluate `model` as `name` on the held-out data in `out`, and write `folder`."""
    eval_tasks = out / "tasks" / "panel" / "tasks.parquet"
    trajectories = [trajectories_file(out, split) for split in recipe.valid_splits]
    pairs = [pairs_file(out, split) for split in recipe.valid_splits]
    reasoning = list(map(Path, recipe.evaluate.reasoning))
    options = {
        "model": model,
        "name": name,
        "tasks": [eval_tasks],
        "trajectories": trajectories,
        "pairs": pairs,
        "reasoning": reasoning,
        "temperature": recipe.evaluate.temperature,
        "max_turns": recipe.evaluate.max_turns,
        "mode": recipe.evaluate.mode,
        "actors": recipe.evaluate.actors,
        "pool": recipe.evaluate.pool or None,
        "max_tokens": max_tokens(recipe),
        "reasoning_max_tokens": recipe.evaluate.reasoning_max_tokens,
        "max_model_len": recipe.max_model_len,
        "engine_options": {**recipe.engine_options, **recipe.evaluate.engine_options},
        "env_settings": env_settings(recipe, out),
        "limit": recipe.evaluate.limit,
        "seed": recipe.seed,
        **prompt_options(recipe),
    }
    inputs = [eval_tasks, *trajectories, *pairs, *reasoning, *model_input(recipe, model)]
    return act_stage(f"evaluate {name}", "evaluate", folder, options, inputs=inputs, out=folder)


def all_splits(recipe: Recipe) -> list[str]:
    return [recipe.train_split, *recipe.valid_splits]


def trajectories_file(out: Path, split: str) -> Path:
    return out / "expert" / split / "trajectories.parquet"


def pairs_file(out: Path, split: str) -> Path:
    return out / "pairs" / split / "pairs.parquet"


def answer_files(evaluation: Path) -> list[Path]:
    """The files of an evaluation, as inputs to hash. The folder's own hash covers only its settings and inputs."""
    return [evaluation / name for name in FILES]


def env_settings(recipe: Recipe, out: Path) -> dict[str, Any]:
    generated = {"data": str((out / "games").absolute())} if recipe.games.counts is not None else {}
    return {**generated, **recipe.env_settings}


def prompt_options(recipe: Recipe) -> dict[str, Any]:
    return {"template": recipe.prompt.template, "template_options": recipe.prompt.options}
