"""Run recipes: a list of stages, each a command that can also be run by hand, or a training run of verl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verl_act.chain.recipe import Recipe, load_recipe
from verl_act.errors import ConfigError

__all__ = ["Recipe", "load_recipe", "run_recipe"]


def run_recipe(
    recipe: str | Recipe,
    out: str | Path,
    changes: Sequence[str] = (),
    *,
    steps: int | None = None,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    check: bool = False,
) -> None:
    """Run a recipe (or its name, or its file) in the folder `out`, with `KEY=VALUE` changes; or only `check` it.

    `steps` bounds each training stage. `seeds` (default: the recipe's) and `only`, names of methods, are for a recipe
    that lists methods. Finished stages are skipped. At the end, the results are printed in a few lines. Raises
    `ConfigError` for invalid settings, `EngineError` if a stage fails.
    """
    from verl_act.chain import method_stages
    from verl_act.chain.check import check_run, check_settings
    from verl_act.chain.run_stages import run_stages
    from verl_act.run_folder import RunFolder

    complete = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, changes, steps)
    folder = RunFolder(Path(out).resolve())
    if (seeds or only) and not complete.methods:
        raise ConfigError("--seeds and --only are for a recipe that lists methods; alfworld/methods is one.")
    if not complete.methods and not complete.stages:
        raise ConfigError("stages is empty; name the training stages of the run.")
    seeds = list(seeds) or [complete.seed]
    chosen = method_stages.only(complete, only) if only else complete
    if check:
        check_run(chosen, folder, seeds)
        return
    planned = method_stages.plan(chosen, folder, seeds)
    check_settings(chosen, planned)
    if chosen.methods:
        method_stages.run_methods(chosen, folder, seeds, complete)
    else:
        run_stages(planned, folder)
    from verl_act.report import summary_text  # needs the extra `report`, which the check of the settings has required

    print(summary_text(folder.root), end="")
