"""A comparison of methods as stages: shared data once, every training stage once a seed, an evaluation each.

Two methods that begin with the same stages share them: `IL + ACT` goes on from the model of `ACT`. The initial model,
the data and the settings of a stage are the same in every method; what a method has in steps is stated in its table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from verl_act.chain.command_line import act_command
from verl_act.chain.recipe import MethodRecipe, PromptRecipe, Recipe, TrainRecipe, parse_stage
from verl_act.chain.run import run_stages
from verl_act.chain.sft import reflections_stage, rows_stage, sft_stage
from verl_act.chain.stages import Stage, answer_files, data_stages, evaluation_stage, rl_stage
from verl_act.errors import ConfigError

_SLUG = re.compile(r"[^a-z0-9]+")


def run_methods(recipe: Recipe, out: Path, seeds: Sequence[int]) -> None:
    """Run all stages that are not up to date; the folder `out/methods` and `out/report.html` are the result."""
    run_stages(method_stages(recipe, out, seeds), out)


def method_stages(recipe: Recipe, out: Path, seeds: Sequence[int]) -> list[Stage]:
    """All stages in the order they run. Raises `ConfigError` where the recipe has no methods or there is no seed."""
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
    evaluated: list[Path] = []
    for seed in seeds:
        seeded = replace(recipe, seed=seed)
        found += _rows(seeded, out, sorted(kinds & {"il", "reflection"}))
        found += _training(seeded, out)
        evaluations = [_evaluation(seeded, out, name) for name in recipe.methods if _needed(recipe, name, seed, seeds)]
        found += evaluations
        evaluated += [stage.output for stage in evaluations]
    return [*found, *_results(recipe, out, seeds, evaluated)]


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


def _evaluation(recipe: Recipe, out: Path, name: str) -> Stage:
    method = recipe.methods[name]
    model = recipe.model_path
    if method.stages:
        model = str(training_folder(out, recipe.seed, method.stages) / "model")
    own = method.prompt
    prompt = PromptRecipe(own.template or recipe.prompt.template, {**recipe.prompt.options, **own.options})
    options = dict(recipe.engine_options)
    if own.chat_template_kwargs:
        options["chat_template_kwargs"] = {**options.get("chat_template_kwargs", {}), **own.chat_template_kwargs}
    asked = replace(recipe, prompt=prompt, engine_options=options)
    stage = evaluation_stage(asked, out, name, model, evaluation_folder(out, recipe.seed, name))
    return replace(stage, name=f"seed {recipe.seed} evaluate {slug(name)}")


def _needed(recipe: Recipe, name: str, seed: int, seeds: Sequence[int]) -> bool:
    """Greedy decoding of an untrained model is the same for every seed."""
    same = not recipe.methods[name].stages and recipe.evaluate.temperature == 0
    return seed == seeds[0] or not same


def _results(recipe: Recipe, out: Path, seeds: Sequence[int], evaluations: list[Path]) -> list[Stage]:
    first = next(iter(recipe.methods))
    methods = {
        name: {
            "steps": budget(recipe, method),
            "against": [other for other in method.against or [first] if other != name],
            "evaluations": {
                str(seed): str(evaluation_folder(out, seed, name).relative_to(out))
                for seed in seeds
                if _needed(recipe, name, seed, seeds)
            },
            "training": {
                str(seed): [
                    f"seed {seed} {training_folder(out, seed, method.stages[:number]).name}"
                    for number in range(1, len(method.stages) + 1)
                ]
                for seed in seeds
            },
        }
        for name, method in recipe.methods.items()
    }
    answers = [file for folder in evaluations for file in answer_files(folder)]
    table = Stage(
        "methods",
        [*act_command("compare-methods", out / "methods", {"methods": methods}), str(out)],
        out / "methods",
        answers,
    )
    page = out / "report.html"
    command = [*act_command("report", page, {}), str(out)]
    return [table, Stage("report", command, page, [*answers, table.output / "methods.json"])]
