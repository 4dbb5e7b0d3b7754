"""The stages of a comparison of methods: shared data, and for each seed its training stages and evaluations.

Methods that begin with the same stages share them: `IL + ACT` starts from the model of `ACT`. The initial model,
the data and the settings of a stage are the same in every method; the table states each method's steps.

Seeds and methods may run one after another, or in separate processes, in one folder: the table has all finished ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from verl_act.chain.plan import (
    data_stages,
    evaluation_files,
    evaluation_stage,
    report_stage,
    rows_stages,
    run_plan,
    training_stages,
    with_method_prompt,
)
from verl_act.chain.recipe import MethodRecipe, Recipe, parse_stage
from verl_act.chain.run_stages import alone, console, is_done, run_stages
from verl_act.chain.stages import CommandStage, Stage
from verl_act.errors import ConfigError
from verl_act.manifest import FILE_NAME
from verl_act.run_folder import RunFolder, slug
from verl_act.settings.evaluation import MethodRuns, MethodsTableSettings

SeedsByMethod = Mapping[str, Sequence[int]]
"""Method -> its seeds in the table, at least one."""


def run_methods(recipe: Recipe, folder: RunFolder, seeds: Sequence[int], complete: Recipe | None = None) -> None:
    """Run all stages that are not up to date; the results are the folder `methods` and the report.

    The table also has other seeds and methods that are finished in the folder, by earlier runs or other processes.
    `complete` is the recipe with all its methods, if `recipe` has only some of them.
    """
    run_stages(_stages_before_table(recipe, folder, seeds), folder)
    # Collected under the lock, so that the last of several processes sees all results.
    with alone(folder, "table", "table of the methods"):
        complete = complete or recipe
        requested = _evaluated_seeds(recipe, seeds)
        run_stages(_table_stages(complete, folder, collect_results(complete, folder, requested)), folder)


def plan(recipe: Recipe, folder: RunFolder, seeds: Sequence[int]) -> list[Stage]:
    """All stages of a recipe, in execution order; `seeds` are those of a comparison of methods."""
    return method_stages(recipe, folder, seeds) if recipe.methods else run_plan(recipe, folder)


def method_stages(recipe: Recipe, folder: RunFolder, seeds: Sequence[int]) -> list[Stage]:
    """All stages in execution order, with a table of these seeds alone.

    Raises `ConfigError` if seeds are missing or repeated, or two methods have one folder name.
    """
    table = _table_stages(recipe, folder, _evaluated_seeds(recipe, seeds))
    return [*_stages_before_table(recipe, folder, seeds), *table]


def _stages_before_table(recipe: Recipe, folder: RunFolder, seeds: Sequence[int]) -> list[Stage]:
    """All stages before the table. Raises `ConfigError` as `method_stages` does."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds is {list(seeds)}; give one or more different seeds.")
    names = {slug(name) for name in recipe.methods}
    if "" in names:
        raise ConfigError(
            "a method's name has no letter a to z and no digit, from which its folder is named. Rename it."
        )
    if len(names) < len(recipe.methods):
        raise ConfigError(f"two methods would have the same folder name: {', '.join(recipe.methods)}. Rename one.")
    planned: list[Stage] = [*data_stages(recipe, folder)]
    requested = _evaluated_seeds(recipe, seeds)
    sequences = [method.stages for method in recipe.methods.values()]
    for seed in seeds:
        seeded, of_seed = recipe.model_copy(update={"seed": seed}), RunFolder(folder.root, seed)
        # Untrained models first, so that a broken evaluation shows before training.
        evaluated = [name for name in recipe.methods if seed in requested[name]]
        planned += [_evaluation(seeded, of_seed, name) for name in evaluated if not recipe.methods[name].stages]
        planned += rows_stages(seeded, of_seed, sequences)
        planned += training_stages(seeded, of_seed, sequences)
        planned += [_evaluation(seeded, of_seed, name) for name in evaluated if recipe.methods[name].stages]
    return planned


def only(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with only these methods.

    Raises `ConfigError` on an unknown name.
    """
    if unknown := [name for name in names if name not in recipe.methods]:
        raise ConfigError(
            f"{unknown[0]!r} is not a method of the recipe; choose from {', '.join(map(repr, recipe.methods))}."
        )
    methods = {name: method for name, method in recipe.methods.items() if name in names}
    return recipe.model_copy(update={"methods": methods})


def budget(recipe: Recipe, method: MethodRecipe) -> dict[str, int]:
    """Stage -> optimizer steps of a method; -1 where the number of epochs decides."""
    steps: dict[str, int] = {}
    for stage in method.stages:
        name, own_steps = parse_stage(stage)
        configured = recipe.whole_override(name, "trainer.total_training_steps")
        steps[stage] = steps.get(stage, 0) + (own_steps or configured or -1)
    return steps


def _evaluation(recipe: Recipe, folder: RunFolder, name: str) -> CommandStage:
    method = recipe.methods[name]
    model = str(folder.training(method.stages).model) if method.stages else recipe.model_path
    prompted = with_method_prompt(recipe, method)
    return evaluation_stage(prompted, folder, name, model, f"evaluate {slug(name)}")


def _evaluated_seeds(recipe: Recipe, seeds: Sequence[int]) -> dict[str, Sequence[int]]:
    """The seeds with which each method is evaluated."""
    return {name: seeds[:1] if _same_for_all(recipe, name) else seeds for name in recipe.methods}


def _same_for_all(recipe: Recipe, name: str) -> bool:
    """Greedy decoding of an untrained model is the same for every seed."""
    return not recipe.methods[name].stages and recipe.evaluate.temperature == 0


def collect_results(recipe: Recipe, folder: RunFolder, requested: SeedsByMethod) -> dict[str, list[int]]:
    """The `requested` seeds of each method and the others that are finished, in ascending order.

    Results from other settings or other data are left out, with a message.
    """
    seeds_by_method: dict[str, list[int]] = {}
    outdated: list[str] = []
    for method in recipe.methods:
        finished = list(requested.get(method, ()))
        for of_seed in folder.seeds:
            evaluation = of_seed.evaluation(method)
            if of_seed.seed is None or of_seed.seed in finished or not (evaluation / FILE_NAME).is_file():
                continue
            if _is_finished(recipe, of_seed, of_seed.seed, method):
                finished.append(of_seed.seed)
            else:
                outdated.append(str(evaluation.relative_to(folder.root)))
        if finished:
            seeds_by_method[method] = [min(finished)] if _same_for_all(recipe, method) else sorted(finished)
    if outdated:
        console.print(
            f"Not in the table, because they are from other settings or other data: {', '.join(outdated)}. Run "
            "their seeds again to include them.",
            soft_wrap=True,
        )
    return seeds_by_method


def _is_finished(recipe: Recipe, folder: RunFolder, seed: int, name: str) -> bool:
    """Whether the method is trained and evaluated with `seed`, by the current settings and data."""
    seeded = recipe.model_copy(update={"seed": seed})
    trained = training_stages(seeded, folder, [recipe.methods[name].stages])
    # Models are large and may have been deleted: their recorded hashes are used.
    models = [Path(recipe.model_path), *(stage.folder.model for stage in trained)]
    stages: list[Stage] = [*trained, _evaluation(seeded, folder, name)]
    return all(is_done(stage, folder, models) for stage in stages)


def _table_stages(recipe: Recipe, folder: RunFolder, seeds_by_method: SeedsByMethod) -> list[Stage]:
    settings = MethodsTableSettings(
        run=folder.root,
        methods={name: _runs(recipe, folder, name, seeds_by_method) for name in seeds_by_method},
        initial_model=recipe.model_path,
    )
    folders = [
        RunFolder(folder.root, seed).evaluation(name) for name, seeds in seeds_by_method.items() for seed in seeds
    ]
    answers = evaluation_files(folders)
    table = CommandStage("methods", "dev methods-table", settings, folder.methods, answers)
    return [table, report_stage(folder, [*answers, folder.methods_file])]


def _runs(recipe: Recipe, folder: RunFolder, name: str, seeds_by_method: SeedsByMethod) -> MethodRuns:
    """The runs of a method in the table. It is tested against methods in the table, by default the first."""
    method, seeds = recipe.methods[name], seeds_by_method[name]
    against = [other for other in method.against if other in seeds_by_method] or [next(iter(seeds_by_method))]
    return MethodRuns(
        stages=method.stages,
        steps=budget(recipe, method),
        against=[other for other in against if other != name],
        evaluations={
            str(seed): str(RunFolder(folder.root, seed).evaluation(name).relative_to(folder.root)) for seed in seeds
        },
    )
