"""The stages of a recipe, in order: data, training, evaluation, tables and report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from verl_act.chain.hydra_overrides import flat
from verl_act.chain.recipe import ROWS_DATA, SFT_DATA, MethodRecipe, Recipe, TrainingRecipe, parse_stage
from verl_act.chain.stages import CommandStage, Stage, Trainer, TrainingStage
from verl_act.envs.settings import input_folders
from verl_act.errors import ConfigError
from verl_act.evaluate.records import FILES
from verl_act.run_folder import RunFolder
from verl_act.settings.base import Settings
from verl_act.settings.data import (
    SFT_INPUTS,
    AlternativesSettings,
    AuditSettings,
    ExpertSettings,
    GamesSettings,
    ImportSettings,
    PairsSettings,
    ReflectSettings,
    SftKind,
    SftSettings,
    TasksSettings,
)
from verl_act.settings.evaluation import CompareSettings, EvaluationSettings, ReportSettings

_EVAL, _TRAIN = "eval", "train"
_SHARED = (
    *("env", "env_settings", "seed", "workers", "task_timeout"),
    *("model", "max_model_len", "engine_options", "template", "template_options"),
)
"""Keys of a recipe that are options of commands."""
S = TypeVar("S", bound=Settings)


def run_plan(recipe: Recipe, folder: RunFolder) -> list[Stage]:
    """All stages of a recipe without methods, in execution order.

    The initial model is evaluated before training, so that a broken evaluation shows within minutes.
    """
    trained = training_stages(recipe, folder, [recipe.stages])
    models = {"initial": recipe.model_path}
    models |= {stage.title: str(stage.folder.model) for stage in trained}
    initial, *evaluations = [
        evaluation_stage(recipe, folder, name, model, f"evaluate {name}") for name, model in models.items()
    ]
    folders = [stage.output for stage in (initial, *evaluations)]
    answers = evaluation_files(folders)
    compared = CompareSettings(evaluations=folders)
    table = CommandStage("comparison", "eval compare", compared, folder.comparison, answers)
    data = [*data_stages(recipe, folder), *rows_stages(recipe, folder, [recipe.stages])]
    return [*data, initial, *trained, *evaluations, table, report_stage(folder, [*answers, folder.comparison])]


def report_stage(folder: RunFolder, inputs: Sequence[Path]) -> CommandStage:
    return CommandStage("report", "eval report", ReportSettings(runs=[folder.root]), folder.report, inputs)


def data_stages(recipe: Recipe, folder: RunFolder) -> list[CommandStage]:
    """Games, expert trajectories, alternatives, pairs and tasks: everything that does not depend on training."""
    planned: list[CommandStage] = []
    sources = input_folders(env_settings(recipe, folder))
    if recipe.games.counts is not None:
        games = _settings(GamesSettings, recipe, folder, recipe.games)
        planned.append(CommandStage("games", "data games", games, folder.games, block="games"))
        sources = [folder.games]
    planned += [_expert_stage(recipe, folder, split, sources) for split in recipe.splits]
    alternatives = _settings(
        AlternativesSettings,
        recipe,
        folder,
        recipe.alternatives,
        trajectories=list(map(folder.trajectories, recipe.splits)),
        allow_degenerate=recipe.allow_degenerate,
    )
    out, model = folder.alternatives.parent, model_input(recipe, recipe.model_path)
    planned.append(CommandStage("alternatives", "data alternatives", alternatives, out, model, "alternatives"))
    for split in recipe.splits:
        files = {"trajectories": [folder.trajectories(split)], "alternatives": [folder.alternatives]}
        pairs = _settings(PairsSettings, recipe, folder, recipe.pairs, **files)
        planned.append(
            CommandStage(f"pairs {split}", "data pairs", pairs, folder.pairs(split).parent, sources, "pairs")
        )
    training, *held_out = map(folder.pairs, recipe.splits)
    audit = _settings(AuditSettings, recipe, folder, recipe.audit, pairs=[training], held_out=held_out)
    planned.append(CommandStage("audit", "data audit", audit, training, block="audit"))
    for name, splits, limit in (
        (_TRAIN, [recipe.train_split], None),
        (_EVAL, recipe.valid_splits, recipe.evaluate.task_limit),
    ):
        tasks = _settings(TasksSettings, recipe, folder, splits=splits, limit=limit)
        out, keys = folder.tasks(name).parent, {"limit": "evaluate.task_limit"}
        planned.append(CommandStage(f"tasks {name}", "data tasks", tasks, out, sources, keys=keys))
    if any(stage.data == "reflection" for stage in _used(recipe)):
        planned.append(_reflections_stage(recipe, folder))
    return [replace(stage, shared=stage.definition.writes != "nothing") for stage in planned]


def _used(recipe: Recipe) -> Iterable[TrainingRecipe]:
    """The training stages that the run, or one of its methods, has."""
    sequences = [method.stages for method in recipe.methods.values()] or [recipe.stages]
    return (recipe.training[parse_stage(stage)[0]] for stages in sequences for stage in stages)


def _expert_stage(recipe: Recipe, folder: RunFolder, split: str, sources: Sequence[Path]) -> CommandStage:
    """The expert plays the tasks of `split`; or the trajectories in the recipe's files for that split are replayed."""
    name, out = f"expert {split}", folder.trajectories(split).parent
    if files := [Path(file).absolute() for file in recipe.expert.files.get(split, ())]:
        imported = _settings(ImportSettings, recipe, folder, files=files, format=recipe.expert.format, split=split)
        keys = {"format": "expert.format", "files": "expert.files"}
        return CommandStage(name, "data import", imported, out, sources, keys=keys)
    own = {"split": split, "expert": recipe.expert.name, "limit": recipe.expert.limits.get(split)}
    keys = {"expert": "expert.name", "limit": f"expert.limits.{split}"}
    played = _settings(ExpertSettings, recipe, folder, **own)
    return CommandStage(name, "data expert", played, out, sources, keys=keys)


def _reflections_stage(recipe: Recipe, folder: RunFolder) -> CommandStage:
    """The initial model's reflections on the training pairs; all seeds share them."""
    training = {
        "trajectories": [folder.trajectories(recipe.train_split)],
        "pairs": [folder.pairs(recipe.train_split)],
    }
    reflect = _settings(ReflectSettings, recipe, folder, recipe.reflect, **training)
    model = model_input(recipe, recipe.model_path)
    return CommandStage("reflections", "data reflect", reflect, folder.reflections.parent, model, "reflect")


def rows_stages(recipe: Recipe, folder: RunFolder, sequences: Sequence[Sequence[str]]) -> list[CommandStage]:
    """The rows of stages that train on such, shuffled with the recipe's seed."""
    used = [recipe.training[parse_stage(stage)[0]].data for stages in sequences for stage in stages]
    return [_rows_stage(recipe, folder, data) for data in ROWS_DATA if data in used]


def _rows_stage(recipe: Recipe, folder: RunFolder, kind: SftKind) -> CommandStage:
    files = {
        "trajectories": folder.trajectories(recipe.train_split),
        "pairs": folder.pairs(recipe.train_split),
        "alternatives": folder.alternatives,
        "reflections": folder.reflections,
    }
    rows = _settings(
        SftSettings,
        recipe,
        folder,
        kind=kind,
        max_length=recipe.max_model_len,
        trust_remote_code=recipe.trust_remote_code,
        chat_template_kwargs=recipe.chat_template_kwargs,
        **{name: [files[name]] for name in SFT_INPUTS[kind]},
    )
    out, model = folder.sft_rows(kind).parent, model_input(recipe, recipe.model_path)
    keys = {"max_length": "max_model_len"}
    return CommandStage(f"rows {kind}", "data sft", rows, out, model, keys=keys, seed=folder.seed)


def training_stages(recipe: Recipe, folder: RunFolder, sequences: Iterable[Sequence[str]]) -> list[TrainingStage]:
    """The training stages of all sequences; those that begin with the same stages share them."""
    planned: dict[Path, TrainingStage] = {}
    for stages in sequences:
        model = recipe.model_path
        for count in range(1, len(stages) + 1):
            trained = folder.training(stages[:count])
            if trained.path not in planned:
                planned[trained.path] = _training_stage(recipe, folder, stages[:count], model)
            model = str(trained.model)
    return list(planned.values())


def _training_stage(recipe: Recipe, folder: RunFolder, stages: Sequence[str], model: str) -> TrainingStage:
    """The last of `stages`, which starts from `model`.

    Raises `ConfigError` where a Hydra group of the stage would change the prompts of training alone, or an SFT stage
    has more than one node.
    """
    title, steps = parse_stage(stages[-1])
    training = recipe.training[title]
    overrides = flat(deepcopy(training.overrides))
    if steps is not None:
        overrides["trainer.total_training_steps"] = steps
    if groups := [group for group in training.config if group.startswith("act/env=")]:
        raise ConfigError(
            f"training.{title}.config has {groups[0]!r}, which would change the prompts of training alone. Set the "
            "recipe's template_options, which all stages share."
        )
    trainer: Trainer = "sft" if training.data in SFT_DATA else "dpo" if training.data == "dpo" else "ppo"
    if trainer != "ppo" and (overrides.get("trainer.nnodes") or 1) > 1:
        raise ConfigError(
            f"training.{title}.overrides has trainer.nnodes above 1, but this trainer is run on one machine "
            "here. Start torchrun on each node yourself, as verl's documentation says."
        )
    train, valid = _training_files(recipe, folder, training)
    if trainer == "ppo":
        settings = _rl_overrides(recipe, folder, training, train, valid, model)
    else:
        settings = _rows_overrides(recipe, trainer, train, model)
    device = {"ppo": [f"act/device={recipe.device}"], "sft": [f"act/device={recipe.device}_sft"], "dpo": []}
    trained = folder.training(stages)
    return TrainingStage(
        title=trained.title,
        seed=folder.seed,
        trainer=trainer,
        config=[*training.config, *(device[trainer] if recipe.device else [])],
        overrides={**settings, **overrides},
        folder=trained,
        inputs=[*train, *valid, *model_input(recipe, model)],
        key=f"training.{title}",
    )


def _rows_overrides(recipe: Recipe, trainer: Trainer, train: Sequence[Path], model: str) -> dict[str, Any]:
    overrides = {
        "data.train_files": list(map(str, train)),
        "data.max_length": recipe.max_model_len,
        "model.path": model,
    }
    if trainer == "dpo":
        overrides |= {"data.seed": recipe.seed, "checkpoint.save_contents": ["hf_model"]}
    return overrides


def _rl_overrides(
    recipe: Recipe,
    folder: RunFolder,
    training: TrainingRecipe,
    train: Sequence[Path],
    valid: Sequence[Path],
    model: str,
) -> dict[str, Any]:
    options = dict(recipe.template_options)
    settings = {
        "data.train_files": list(map(str, train)),
        "data.val_files": list(map(str, valid)),
        "data.seed": recipe.seed,
        "data.act.template": recipe.template,
        "data.act.history_length": options.pop("history_length", None),
        "++data.act.template_options": options,
        "data.act.seed": recipe.seed,
        "++data.act.episode.env_settings": env_settings(recipe, folder),
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.rollout.max_model_len": recipe.max_model_len,
    }
    if (markers := recipe.engine_options.get("thought_markers")) is not None:
        settings["data.act.thought_markers"] = markers
    if recipe.allow_degenerate:
        settings["data.act.allow_degenerate"] = True
    if training.data == "episodes":  # as in the evaluation
        settings["data.act.episode.mode"] = recipe.evaluate.mode
        settings["data.act.episode.max_turns"] = recipe.evaluate.max_turns
        settings["data.act.episode.max_tokens_per_turn"] = _max_tokens(recipe)
    if any("action_ppo" in group for group in training.config):
        settings["critic.model.path"] = model
    return settings


def _training_files(recipe: Recipe, folder: RunFolder, training: TrainingRecipe) -> tuple[list[Path], list[Path]]:
    """The files of training and of validation."""
    if training.data in ROWS_DATA:
        return [folder.sft_rows(training.data)], []
    if training.data == "episodes":
        return [folder.tasks(_TRAIN)], [folder.tasks(_EVAL)]
    file = folder.pairs if training.data == "pairs" else folder.trajectories
    return [file(recipe.train_split)], list(map(file, recipe.valid_splits))


def evaluation_stage(recipe: Recipe, folder: RunFolder, name: str, model: str, title: str) -> CommandStage:
    """Evaluate `model` as `name` on the held-out data."""
    own = {
        "model": model,
        "name": name,
        "tasks": [folder.tasks(_EVAL)],
        "trajectories": list(map(folder.trajectories, recipe.valid_splits)),
        "pairs": list(map(folder.pairs, recipe.valid_splits)),
        "max_tokens": _max_tokens(recipe),
        "engine_options": {**recipe.engine_options, **recipe.evaluate.engine_options},
    }
    options = {key: value for key, value in recipe.evaluate if key != "task_limit"}
    evaluation = _settings(EvaluationSettings, recipe, folder, **{**options, **own})
    out, inputs = folder.evaluation(name), model_input(recipe, model)
    return CommandStage(title, "eval run", evaluation, out, inputs, "evaluate", seed=folder.seed)


def evaluation_files(folders: Iterable[Path]) -> list[Path]:
    """The files of evaluations, as inputs to hash. A folder's own hash covers only its settings and inputs."""
    return [folder / name for folder in folders for name in FILES]


def with_method_prompt(recipe: Recipe, method: MethodRecipe) -> Recipe:
    """The recipe with the prompt used to evaluate the method."""
    options = dict(recipe.engine_options)
    if method.chat_template_kwargs:
        options["chat_template_kwargs"] = {**options.get("chat_template_kwargs", {}), **method.chat_template_kwargs}
    return recipe.model_copy(
        update={
            "template": method.template or recipe.template,
            "template_options": {**recipe.template_options, **method.template_options},
            "engine_options": options,
        }
    )


def _settings(kind: type[S], recipe: Recipe, folder: RunFolder, block: Settings | None = None, /, **own: Any) -> S:
    """A command's settings: its `own`, over the recipe's `block` of them, over the recipe's keys that stages share."""
    recipe_wide = {**dict(recipe), "model": recipe.model_path, "env_settings": env_settings(recipe, folder)}
    shared = {name: recipe_wide[name] for name in _SHARED if name in kind.model_fields}
    return kind(**{**shared, **dict(block or ()), **own})


def _max_tokens(recipe: Recipe) -> int:
    """Most tokens of a reply in an evaluation."""
    limit = recipe.evaluate.max_tokens
    return recipe.alternatives.max_tokens if limit is None else limit


def model_input(recipe: Recipe, model: str) -> list[Path]:
    """The model's folder as an input to hash; empty for an initial model from a hub."""
    return [Path(model)] if model != recipe.model_path or Path(model).is_dir() else []


def env_settings(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    generated = {"data": str(folder.games)} if recipe.games.counts is not None else {}
    return {**generated, **recipe.env_settings}
