"""The stages of a comparison of methods: shared data, and for each seed its training stages and evaluations.

Methods that begin with the same stages share them: `IL + ACT` starts from the model of `ACT`. The initial model,
the data and the settings of a stage are the same in every method; the table states each method's steps.

Seeds and methods may run one after another, or in separate processes, in one folder: the table has all finished ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_act.chain.recipe import MethodRecipe, PromptRecipe, Recipe, TrainRecipe, parse_stage
from verl_act.chain.run import alone, console, is_done, run_stages
from verl_act.chain.sft import reflections_stage, rows_stage, sft_stage
from verl_act.chain.stages import Stage, act_stage, answer_files, data_stages, evaluation_stage, rl_stage
from verl_act.errors import ConfigError
from verl_act.manifest import FILE_NAME

_SLUG = re.compile(r"[^a-z0-9]+")
_SEED = re.compile(r"seed-(-?\d+)")

SeedsByMethod = Mapping[str, Sequence[int]]
"""Method -> its seeds in the table, at least one."""


def run_methods(recipe: Recipe, out: Path, seeds: Sequence[int], whole: Recipe | None = None) -> None:
    """Run all stages that are not up to date; the results are `out/methods` and `out/report.html`.

    The table also has other seeds and methods that are finished in `out`, by earlier runs or other processes. `whole`
    is the recipe with all its methods, if `recipe` has only some of them.
    """
    run_stages(_stages_before_table(recipe, out, seeds), out)
    # Collected under the lock, so that the last of several processes sees all results.
    with alone(out, "table", "table of the methods"):
        whole = whole or recipe
        run_stages(_table_stages(whole, out, collect_results(whole, out, _evaluated_seeds(recipe, seeds))), out)


def method_stages(recipe: Recipe, out: Path, seeds: Sequence[int]) -> list[Stage]:
    """All stages in execution order, with a table of these seeds alone.

    Raises `ConfigError` if the recipe has no methods, or seeds are missing or repeated.
    """
    return [*_stages_before_table(recipe, out, seeds), *_table_stages(recipe, out, _evaluated_seeds(recipe, seeds))]


def _stages_before_table(recipe: Recipe, out: Path, seeds: Sequence[int]) -> list[Stage]:
    """All stages before the table. Raises `ConfigError` as `method_stages` does."""
    if not recipe.methods:
        raise ConfigError("the recipe lists no methods; alfworld/methods is one that does.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds is {list(seeds)}; give one or more different seeds.")
    names = {slug(name) for name in recipe.methods}
    if "" in names:
        raise ConfigError(
            "a method's name has no letter a to z and no digit, from which its folder is named. Rename it."
        )
    if len(names) < len(recipe.methods):
        raise ConfigError(f"two methods would have the same folder name: {', '.join(recipe.methods)}. Rename one.")
    planned = data_stages(recipe, out)
    kinds = {parse_stage(stage)[0] for method in recipe.methods.values() for stage in method.stages}
    if "reflection" in kinds:
        planned.append(reflections_stage(recipe, out))
    requested = _evaluated_seeds(recipe, seeds)
    for seed in seeds:
        seeded = replace(recipe, seed=seed)
        # Untrained models first, so that a broken evaluation shows before training.
        evaluated = [name for name in recipe.methods if seed in requested[name]]
        planned += [_evaluation(seeded, out, name) for name in evaluated if not recipe.methods[name].stages]
        planned += _rows(seeded, out, sorted(kinds & {"il", "reflection"}))
        planned += _training(seeded, out)
        planned += [_evaluation(seeded, out, name) for name in evaluated if recipe.methods[name].stages]
    return planned


def only(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with only these methods. One whose `against` methods are all left out is tested against the first.

    Raises `ConfigError` on an unknown name.
    """
    if unknown := [name for name in names if name not in recipe.methods]:
        raise ConfigError(
            f"{unknown[0]!r} is not a method of the recipe; choose from {', '.join(map(repr, recipe.methods))}."
        )
    chosen = {name: method for name, method in recipe.methods.items() if name in names}
    return replace(
        recipe,
        methods={
            name: replace(method, against=[other for other in method.against if other in chosen])
            for name, method in chosen.items()
        },
    )


def slug(name: str) -> str:
    """The folder name of a method."""
    return _SLUG.sub("-", name.lower()).strip("-")


def budget(recipe: Recipe, method: MethodRecipe) -> dict[str, int]:
    """Stage -> optimizer steps of a method; -1 where the number of epochs decides."""
    steps: dict[str, int] = {}
    for stage in method.stages:
        kind, own_steps = parse_stage(stage)
        trainer = getattr(recipe, kind).overrides.get("trainer", {})
        steps[stage] = steps.get(stage, 0) + (own_steps or int(trainer.get("total_training_steps") or -1))
    return steps


def training_folder(out: Path, seed: int, stages: Sequence[str]) -> Path:
    """Folder of the model trained by `stages`, in order."""
    return out / f"seed-{seed}" / "+".join(stages).replace(":", "-")


def evaluation_folder(out: Path, seed: int, name: str) -> Path:
    return out / f"seed-{seed}" / "evaluation" / slug(name)


def _rows(recipe: Recipe, out: Path, kinds: Sequence[str]) -> list[Stage]:
    folder = out / f"seed-{recipe.seed}"
    planned = [rows_stage(recipe, out, kind, folder / f"rows-{kind}") for kind in kinds]
    return [replace(stage, name=f"seed {recipe.seed} {stage.name}") for stage in planned]


def _training(recipe: Recipe, out: Path) -> list[Stage]:
    by_folder: dict[Path, Stage] = {}
    for method in recipe.methods.values():
        model = recipe.model_path
        for count, name in enumerate(method.stages, 1):
            folder = training_folder(out, recipe.seed, method.stages[:count])
            if folder not in by_folder:
                by_folder[folder] = replace(
                    _train(recipe, out, name, model, folder), name=f"seed {recipe.seed} {folder.name}"
                )
            model = str(folder / "model")
    return list(by_folder.values())


def _train(recipe: Recipe, out: Path, name: str, model: str, folder: Path) -> Stage:
    kind, steps = parse_stage(name)
    stage: TrainRecipe = deepcopy(getattr(recipe, kind))
    if steps is not None:
        stage.overrides.setdefault("trainer", {})["total_training_steps"] = steps
    if kind in ("il", "reflection"):
        return sft_stage(recipe, stage, out / f"seed-{recipe.seed}" / f"rows-{kind}", model, folder)
    return rl_stage(recipe, out, kind, stage, model, folder)


def with_method_prompt(recipe: Recipe, method: MethodRecipe) -> Recipe:
    """The recipe with the prompt used to evaluate the method."""
    override = method.prompt
    prompt = PromptRecipe(override.template or recipe.prompt.template, {**recipe.prompt.options, **override.options})
    options = dict(recipe.engine_options)
    if override.chat_template_kwargs:
        options["chat_template_kwargs"] = {**options.get("chat_template_kwargs", {}), **override.chat_template_kwargs}
    return replace(recipe, prompt=prompt, engine_options=options)


def _evaluation(recipe: Recipe, out: Path, name: str) -> Stage:
    method = recipe.methods[name]
    model = recipe.model_path
    if method.stages:
        model = str(training_folder(out, recipe.seed, method.stages) / "model")
    folder = evaluation_folder(out, recipe.seed, name)
    stage = evaluation_stage(with_method_prompt(recipe, method), out, name, model, folder)
    return replace(stage, name=f"seed {recipe.seed} evaluate {slug(name)}")


def _evaluated_seeds(recipe: Recipe, seeds: Sequence[int]) -> dict[str, Sequence[int]]:
    """The seeds with which each method is evaluated."""
    return {name: seeds[:1] if _same_for_all(recipe, name) else seeds for name in recipe.methods}


def _same_for_all(recipe: Recipe, name: str) -> bool:
    """Greedy decoding of an untrained model is the same for every seed."""
    return not recipe.methods[name].stages and recipe.evaluate.temperature == 0


def collect_results(recipe: Recipe, out: Path, requested: SeedsByMethod) -> dict[str, list[int]]:
    """The `requested` seeds of each method and the others that are finished in `out`, in ascending order.

    Results from other settings or other data are left out, with a message.
    """
    seeds = [int(name[1]) for path in out.glob("seed-*") if (name := _SEED.fullmatch(path.name))]
    seeds_by_method: dict[str, list[int]] = {}
    outdated: list[str] = []
    for method in recipe.methods:
        finished = list(requested.get(method, ()))
        for seed in seeds:
            folder = evaluation_folder(out, seed, method)
            if seed in finished or not (folder / FILE_NAME).is_file():
                continue
            if _is_finished(recipe, out, seed, method):
                finished.append(seed)
            else:
                outdated.append(str(folder.relative_to(out)))
        if finished:
            seeds_by_method[method] = [min(finished)] if _same_for_all(recipe, method) else sorted(finished)
    if outdated:
        console.print(
            f"Not in the table, because they are from other settings or other data: {', '.join(outdated)}. Run "
            "their seeds again to include them.",
            soft_wrap=True,
        )
    return seeds_by_method


def _is_finished(recipe: Recipe, out: Path, seed: int, name: str) -> bool:
    """Whether the method is trained and evaluated with `seed`, by the current settings and data."""
    single = replace(recipe, seed=seed, methods={name: recipe.methods[name]})
    trained = _training(single, out)
    # Models are large and may have been deleted: their recorded hashes are used.
    models = [Path(recipe.model_path), *(stage.output / "model" for stage in trained)]
    return all(is_done(stage, out, models) for stage in [*trained, _evaluation(single, out, name)])


def _table_stages(recipe: Recipe, out: Path, seeds_by_method: SeedsByMethod) -> list[Stage]:
    options = {
        "methods": {name: _entry(recipe, out, name, seeds_by_method) for name in seeds_by_method},
        "initial_model": recipe.model_path,
    }
    answers = [
        file
        for name, seeds in seeds_by_method.items()
        for seed in seeds
        for file in answer_files(evaluation_folder(out, seed, name))
    ]
    folder, page = out / "methods", out / "report.html"
    table = act_stage("methods", "compare-methods", folder, options, {"run": out}, answers, out=folder)
    inputs = [*answers, folder / "methods.json"]
    return [table, act_stage("report", "report", page, {}, {"runs": [out]}, inputs, out=page)]


def _entry(recipe: Recipe, out: Path, name: str, seeds_by_method: SeedsByMethod) -> dict[str, Any]:
    """The entry of a method for `compare-methods`: it is tested against methods in the table, by default the first."""
    method, seeds = recipe.methods[name], seeds_by_method[name]
    against = [other for other in method.against if other in seeds_by_method] or [next(iter(seeds_by_method))]
    folders = [method.stages[:count] for count in range(1, len(method.stages) + 1)]
    return {
        "steps": budget(recipe, method),
        "against": [other for other in against if other != name],
        "evaluations": {str(seed): str(evaluation_folder(out, seed, name).relative_to(out)) for seed in seeds},
        "training": {
            str(seed): [f"seed {seed} {training_folder(out, seed, stages).name}" for stages in folders]
            for seed in seeds
        },
    }
