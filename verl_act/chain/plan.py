"""The stages of a recipe, in order: data, training, evaluation, tables and report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_act.chain.hydra_overrides import flat
from verl_act.chain.recipe import ROWS_DATA, SFT_DATA, MethodRecipe, Recipe, TrainingRecipe, parse_stage
from verl_act.chain.stages import CommandStage, Stage, Trainer, TrainingStage
from verl_act.envs.settings import input_folders
from verl_act.errors import ConfigError
from verl_act.evaluate.files import FILES
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
_SPLITS = "train_split or valid_splits"


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
    table = command_stage("comparison", "eval compare", compared, folder.comparison, answers)
    data = [*data_stages(recipe, folder), *rows_stages(recipe, folder, [recipe.stages])]
    return [*data, initial, *trained, *evaluations, table, report_stage(folder, [*answers, folder.comparison])]


def report_stage(folder: RunFolder, inputs: Sequence[Path]) -> CommandStage:
    return command_stage("report", "eval report", ReportSettings(runs=[folder.root]), folder.report, inputs)


def data_stages(recipe: Recipe, folder: RunFolder) -> list[CommandStage]:
    """Games, expert trajectories, alternatives, pairs and tasks: everything that does not depend on training."""
    environment = env_settings(recipe, folder)
    planned: list[CommandStage] = []
    sources = input_folders(environment)
    if recipe.games.counts is not None:
        games = GamesSettings(**dict(recipe.games), **_workers(recipe), env=recipe.env)
        planned.append(command_stage("games", "data games", games, folder.games, block="games"))
        sources = [folder.games]
    planned += [_expert_stage(recipe, folder, split, sources) for split in recipe.splits]
    trajectories = list(map(folder.trajectories, recipe.splits))
    alternatives = AlternativesSettings(
        **dict(recipe.alternatives),
        **_model(recipe),
        **_prompt(recipe),
        trajectories=trajectories,
        allow_degenerate=recipe.allow_degenerate,
    )
    model = model_input(recipe, recipe.model_path)
    planned.append(
        command_stage(
            "alternatives", "data alternatives", alternatives, folder.alternatives.parent, model, "alternatives"
        )
    )
    for split in recipe.splits:
        pairs = PairsSettings(
            **dict(recipe.pairs),
            **_workers(recipe),
            trajectories=[folder.trajectories(split)],
            alternatives=[folder.alternatives],
            env_settings=environment,
            seed=recipe.seed,
        )
        planned.append(
            command_stage(f"pairs {split}", "data pairs", pairs, folder.pairs(split).parent, sources, "pairs")
        )
    training, *held_out = map(folder.pairs, recipe.splits)
    audit = AuditSettings(**dict(recipe.audit), **_prompt(recipe), pairs=[training], held_out=held_out)
    planned.append(command_stage("audit", "data audit", audit, training, block="audit"))
    for name, splits, limit in (
        (_TRAIN, [recipe.train_split], None),
        (_EVAL, recipe.valid_splits, recipe.evaluate.task_limit),
    ):
        tasks = TasksSettings(env=recipe.env, splits=splits, limit=limit, seed=recipe.seed, env_settings=environment)
        planned.append(
            command_stage(
                f"tasks {name}", "data tasks", tasks, folder.tasks(name).parent, sources, limit="evaluate.task_limit"
            )
        )
    if any(stage.data == "reflection" for stage in _used(recipe)):
        planned.append(_reflections_stage(recipe, folder))
    return [replace(stage, shared=stage.definition.writes != "nothing") for stage in planned]


def _used(recipe: Recipe) -> Iterable[TrainingRecipe]:
    """The training stages that the run, or one of its methods, has."""
    sequences = [method.stages for method in recipe.methods.values()] or [recipe.stages]
    return (recipe.training[parse_stage(stage)[0]] for stages in sequences for stage in stages)


def _expert_stage(recipe: Recipe, folder: RunFolder, split: str, sources: Sequence[Path]) -> CommandStage:
    """The expert plays the tasks of `split`; or the trajectories in the recipe's files for that split are replayed."""
    name, out, shared = f"expert {split}", folder.trajectories(split).parent, _workers(recipe)
    environment = env_settings(recipe, folder)
    if files := [Path(file).absolute() for file in recipe.expert.files.get(split, ())]:
        imported = ImportSettings(
            env=recipe.env,
            files=files,
            format=recipe.expert.format,
            split=split,
            env_settings=environment,
            **shared,
        )
        keys = {"format": "expert.format", "files": "expert.files"}
        return command_stage(name, "data import", imported, out, sources, **keys)
    played = ExpertSettings(
        env=recipe.env,
        split=split,
        expert=recipe.expert.name,
        limit=recipe.expert.limits.get(split),
        env_settings=environment,
        seed=recipe.seed,
        **shared,
    )
    keys = {"expert": "expert.name", "limit": f"expert.limits.{split}"}
    return command_stage(name, "data expert", played, out, sources, **keys)


def _reflections_stage(recipe: Recipe, folder: RunFolder) -> CommandStage:
    """The initial model's reflections on the training pairs; all seeds share them."""
    reflect = ReflectSettings(
        **dict(recipe.reflect),
        **_model(recipe),
        **_prompt(recipe),
        **_workers(recipe),
        env_settings=env_settings(recipe, folder),
        trajectories=[folder.trajectories(recipe.train_split)],
        pairs=[folder.pairs(recipe.train_split)],
    )
    model = model_input(recipe, recipe.model_path)
    return command_stage("reflections", "data reflect", reflect, folder.reflections.parent, model, "reflect")


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
    options: dict[str, Any] = {name: [files[name]] for name in SFT_INPUTS[kind]}
    options |= {
        **_prompt(recipe),
        "kind": kind,
        "model": recipe.model_path,
        "max_length": recipe.max_model_len,
        "trust_remote_code": recipe.trust_remote_code,
        "chat_template_kwargs": recipe.chat_template_kwargs,
    }
    rows = SftSettings(**options)
    out, model = folder.sft_rows(kind).parent, model_input(recipe, recipe.model_path)
    stage = command_stage(f"rows {kind}", "data sft", rows, out, model, max_length="max_model_len")
    return replace(stage, seed=folder.seed)


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
    options = dict(recipe.evaluate)
    del options["task_limit"]
    evaluation = EvaluationSettings(
        **{
            **_model(recipe),
            **_prompt(recipe),
            **options,
            "model": model,
            "name": name,
            "tasks": [folder.tasks(_EVAL)],
            "trajectories": list(map(folder.trajectories, recipe.valid_splits)),
            "pairs": list(map(folder.pairs, recipe.valid_splits)),
            "max_tokens": _max_tokens(recipe),
            "engine_options": {**recipe.engine_options, **recipe.evaluate.engine_options},
            "env_settings": env_settings(recipe, folder),
        }
    )
    out, inputs = folder.evaluation(name), model_input(recipe, model)
    return replace(command_stage(title, "eval run", evaluation, out, inputs, "evaluate"), seed=folder.seed)


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


def command_stage(
    title: str,
    command: str,
    settings: Settings,
    output: Path,
    other_inputs: Sequence[Path] = (),
    block: str = "",
    **keys: str,
) -> CommandStage:
    """A stage that leaves `output`. Options of the recipe's `block`, and those in `keys`, have other keys."""
    return CommandStage(
        title=title,
        command=command,
        settings=settings,
        output=output,
        other_inputs=other_inputs,
        block=block,
        keys={"split": _SPLITS, "splits": _SPLITS, **keys},
    )


def _workers(recipe: Recipe) -> dict[str, Any]:
    return {"workers": recipe.workers, "task_timeout": recipe.task_timeout}


def _model(recipe: Recipe) -> dict[str, Any]:
    return {
        "model": recipe.model_path,
        "max_model_len": recipe.max_model_len,
        "engine_options": recipe.engine_options,
    }


def _prompt(recipe: Recipe) -> dict[str, Any]:
    return {"template": recipe.template, "template_options": recipe.template_options, "seed": recipe.seed}


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
