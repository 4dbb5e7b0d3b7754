"""A comparison of methods as stages: shared data once, every training stage once a seed, an evaluation each.

Two methods that begin with the same stages share them: `IL + ACT` goes on from the model of `ACT`. The initial model,
the data and the settings of a stage are the same in every method; what a method has in steps is stated in its table.

Seeds and methods may come one after another, or each by a process of its own, into one folder: the table has all that
are finished there.
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

Tabled = Mapping[str, Sequence[int]]
"""Method -> the seeds with which it stands in the table, at least one."""


def run_methods(recipe: Recipe, out: Path, seeds: Sequence[int], whole: Recipe | None = None) -> None:
    """Run all stages that are not up to date; the folder `out/methods` and `out/report.html` are the result.

    The table also has what was finished in `out` before, or meanwhile by another process: other seeds, and of `whole`
    (the recipe with all its methods, where `recipe` has some of them) the other methods.
    """
    run_stages(_making(recipe, out, seeds), out)
    # Gathered under the lock: the last of several processes has them all.
    with alone(out, "table", "table of the methods"):
        whole = whole or recipe
        run_stages(_results(whole, out, collect_results(whole, out, _asked(recipe, seeds))), out)


def method_stages(recipe: Recipe, out: Path, seeds: Sequence[int]) -> list[Stage]:
    """All stages in the order they run, with a table of these seeds alone.

    Raises `ConfigError` where the recipe has no methods or there is no seed.
    """
    return [*_making(recipe, out, seeds), *_results(recipe, out, _asked(recipe, seeds))]


def _making(recipe: Recipe, out: Path, seeds: Sequence[int]) -> list[Stage]:
    """All stages before the table. Raises `ConfigError` as `method_stages` does."""
    if not recipe.methods:
        raise ConfigError("the recipe lists no methods; alfworld/methods is one that does.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"the seeds are {list(seeds)}; give one or more, each once.")
    names = {slug(name) for name in recipe.methods}
    if "" in names:
        raise ConfigError("a method's name has none of a to z and 0 to 9, of which its folder's name is made.")
    if len(names) < len(recipe.methods):
        raise ConfigError(f"two methods have nearly the same name: {', '.join(recipe.methods)}. Rename one.")
    found = data_stages(recipe, out)
    kinds = {parse_stage(stage)[0] for method in recipe.methods.values() for stage in method.stages}
    if "reflection" in kinds:
        found.append(reflections_stage(recipe, out))
    asked = _asked(recipe, seeds)
    for seed in seeds:
        seeded = replace(recipe, seed=seed)
        # Untrained models first, so that an evaluation that cannot work shows before the training.
        evaluated = [name for name in recipe.methods if seed in asked[name]]
        found += [_evaluation(seeded, out, name) for name in evaluated if not recipe.methods[name].stages]
        found += _rows(seeded, out, sorted(kinds & {"il", "reflection"}))
        found += _training(seeded, out)
        found += [_evaluation(seeded, out, name) for name in evaluated if recipe.methods[name].stages]
    return found


def only(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with these of its methods. One whose `against` is left out is tested against the first of them.

    Raises `ConfigError` on a name that is no method's.
    """
    if unknown := [name for name in names if name not in recipe.methods]:
        raise ConfigError(
            f"{unknown[0]!r} is no method of the recipe; there are {', '.join(map(repr, recipe.methods))}."
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
    """A method's name as a folder's."""
    return _SLUG.sub("-", name.lower()).strip("-")


def budget(recipe: Recipe, method: MethodRecipe) -> dict[str, int]:
    """Stage -> optimizer steps of a method; -1 where the recipe leaves it to the number of epochs."""
    steps: dict[str, int] = {}
    for stage in method.stages:
        kind, own = parse_stage(stage)
        trainer = getattr(recipe, kind).overrides.get("trainer", {})
        steps[stage] = steps.get(stage, 0) + (own or int(trainer.get("total_training_steps") or -1))
    return steps


def training_folder(out: Path, seed: int, stages: Sequence[str]) -> Path:
    """Where the model is that has gone through `stages`."""
    return out / f"seed-{seed}" / "+".join(stages).replace(":", "-")


def evaluation_folder(out: Path, seed: int, name: str) -> Path:
    return out / f"seed-{seed}" / "evaluation" / slug(name)


def _rows(recipe: Recipe, out: Path, kinds: Sequence[str]) -> list[Stage]:
    folder = out / f"seed-{recipe.seed}"
    found = [rows_stage(recipe, out, kind, folder / f"rows-{kind}") for kind in kinds]
    return [replace(stage, name=f"seed {recipe.seed} {stage.name}") for stage in found]


def _training(recipe: Recipe, out: Path) -> list[Stage]:
    found: dict[Path, Stage] = {}
    for method in recipe.methods.values():
        model = recipe.model_path
        for number, text in enumerate(method.stages, 1):
            folder = training_folder(out, recipe.seed, method.stages[:number])
            if folder not in found:
                found[folder] = replace(
                    _train(recipe, out, text, model, folder), name=f"seed {recipe.seed} {folder.name}"
                )
            model = str(folder / "model")
    return list(found.values())


def _train(recipe: Recipe, out: Path, text: str, model: str, folder: Path) -> Stage:
    kind, steps = parse_stage(text)
    stage: TrainRecipe = deepcopy(getattr(recipe, kind))
    if steps is not None:
        stage.overrides.setdefault("trainer", {})["total_training_steps"] = steps
    if kind in ("il", "reflection"):
        return sft_stage(recipe, stage, out / f"seed-{recipe.seed}" / f"rows-{kind}", model, folder)
    return rl_stage(recipe, out, kind, stage, model, folder)


def with_method_prompt(recipe: Recipe, method: MethodRecipe) -> Recipe:
    """The recipe with the prompt that the method is evaluated with."""
    own = method.prompt
    prompt = PromptRecipe(own.template or recipe.prompt.template, {**recipe.prompt.options, **own.options})
    options = dict(recipe.engine_options)
    if own.chat_template_kwargs:
        options["chat_template_kwargs"] = {**options.get("chat_template_kwargs", {}), **own.chat_template_kwargs}
    return replace(recipe, prompt=prompt, engine_options=options)


def _evaluation(recipe: Recipe, out: Path, name: str) -> Stage:
    method = recipe.methods[name]
    model = recipe.model_path
    if method.stages:
        model = str(training_folder(out, recipe.seed, method.stages) / "model")
    folder = evaluation_folder(out, recipe.seed, name)
    stage = evaluation_stage(with_method_prompt(recipe, method), out, name, model, folder)
    return replace(stage, name=f"seed {recipe.seed} evaluate {slug(name)}")


def _asked(recipe: Recipe, seeds: Sequence[int]) -> dict[str, Sequence[int]]:
    """The seeds with which each method is evaluated."""
    return {name: seeds[:1] if _same_for_all(recipe, name) else seeds for name in recipe.methods}


def _same_for_all(recipe: Recipe, name: str) -> bool:
    """Greedy decoding of an untrained model is the same for every seed."""
    return not recipe.methods[name].stages and recipe.evaluate.temperature == 0


def collect_results(recipe: Recipe, out: Path, asked: Tabled) -> dict[str, list[int]]:
    """`asked`, and with what else the methods of `recipe` are finished in `out`; seeds in their order.

    What was made by other settings or from other data is left out, and told.
    """
    seeds = [int(name[1]) for path in out.glob("seed-*") if (name := _SEED.fullmatch(path.name))]
    tabled: dict[str, list[int]] = {}
    other: list[str] = []
    for method in recipe.methods:
        found = list(asked.get(method, ()))
        for seed in seeds:
            folder = evaluation_folder(out, seed, method)
            if seed in found or not (folder / FILE_NAME).is_file():
                continue
            if _is_finished(recipe, out, seed, method):
                found.append(seed)
            else:
                other.append(str(folder.relative_to(out)))
        if found:
            tabled[method] = [min(found)] if _same_for_all(recipe, method) else sorted(found)
    if other:
        console.print(
            f"Not in the table, because other settings or other data made them: {', '.join(other)}. Run their seeds "
            "again to have them in.",
            soft_wrap=True,
        )
    return tabled


def _is_finished(recipe: Recipe, out: Path, seed: int, name: str) -> bool:
    """Whether the method has been trained and evaluated with `seed` as the recipe says, on the data that are here."""
    own = replace(recipe, seed=seed, methods={name: recipe.methods[name]})
    trained = _training(own, out)
    # Models are large, and may have been deleted: they count as what they were.
    models = [Path(recipe.model_path), *(stage.output / "model" for stage in trained)]
    return all(is_done(stage, out, models) for stage in [*trained, _evaluation(own, out, name)])


def _results(recipe: Recipe, out: Path, tabled: Tabled) -> list[Stage]:
    options = {
        "methods": {name: _entry(recipe, out, name, tabled) for name in tabled},
        "initial_model": recipe.model_path,
    }
    answers = [
        file
        for name, seeds in tabled.items()
        for seed in seeds
        for file in answer_files(evaluation_folder(out, seed, name))
    ]
    folder, page = out / "methods", out / "report.html"
    table = act_stage("methods", "compare-methods", folder, options, {"run": out}, answers, out=folder)
    inputs = [*answers, folder / "methods.json"]
    return [table, act_stage("report", "report", page, {}, {"runs": [out]}, inputs, out=page)]


def _entry(recipe: Recipe, out: Path, name: str, tabled: Tabled) -> dict[str, Any]:
    """What `compare-methods` is told of a method. It is tested against methods of the table, or else its first."""
    method, seeds = recipe.methods[name], tabled[name]
    against = [other for other in method.against if other in tabled] or [next(iter(tabled))]
    folders = [method.stages[:number] for number in range(1, len(method.stages) + 1)]
    return {
        "steps": budget(recipe, method),
        "against": [other for other in against if other != name],
        "evaluations": {str(seed): str(evaluation_folder(out, seed, name).relative_to(out)) for seed in seeds},
        "training": {
            str(seed): [f"seed {seed} {training_folder(out, seed, stages).name}" for stages in folders]
            for seed in seeds
        },
    }
