"""All commands of the command line: their settings and the functions that run them.

A command's function is imported only when it runs, so that `--help` is quick. It is called as `function(settings,
out)`; the module's `check_settings(settings)`, if there is one, finds before any work what a settings class alone
cannot know, such as the splits of an environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from verl_act.settings import data, evaluation, smoke
from verl_act.settings.base import Settings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Command(Generic[S]):
    """A command. `help` is its text on the command line, `module` and `function` what it runs."""

    name: str
    settings: type[S]
    module: str
    function: str
    help: str
    writes: Literal["folder", "optional", "page", "nothing"] = "folder"
    """What `--out` names: a `folder`, an optional folder (`optional`), a `page`, or `nothing` (no `--out`)."""

    def check(self, settings: S) -> None:
        """Raise `ActError` for settings that cannot work."""
        check: Callable[[S], object] | None = getattr(import_module(self.module), "check_settings", None)
        if check is not None:
            check(settings)

    def run(self, settings: S, out: Path | None) -> Any:
        return getattr(import_module(self.module), self.function)(settings, out)


_COMMANDS: list[Command[Any]] = [
    Command(
        "data games",
        data.GamesSettings,
        "verl_act.envs.make_games",
        "make_games",
        "Generate games of an environment, in its file format. ALFWorld's are won on the engine first.",
    ),
    Command(
        "data expert",
        data.ExpertSettings,
        "verl_act.data_prep.expert.collect_expert",
        "collect_expert",
        "Play tasks with an expert; keep the trajectories that win and can be replayed.",
    ),
    Command(
        "data import",
        data.ImportSettings,
        "verl_act.data_prep.imports.import_trajectories",
        "import_trajectories",
        "Expert trajectories from published data: respelled, replayed on the engine, kept where they win.",
    ),
    Command(
        "data alternatives",
        data.AlternativesSettings,
        "verl_act.data_prep.alternatives.sample_alternatives",
        "sample_alternatives",
        "Sample the initial policy at every expert state. A killed run resumes where it stopped.",
    ),
    Command(
        "data pairs",
        data.PairsSettings,
        "verl_act.data_prep.pairs.build_pairs",
        "build_pairs",
        "Pair expert actions with sampled alternatives; measure margins in the environment.",
    ),
    Command(
        "data preferences",
        data.PreferencesSettings,
        "verl_act.data_prep.pairs.import_preferences",
        "import_preferences",
        "Preference data (chosen and rejected, or scored completions) as pairs; invalid rows are listed with reasons.",
    ),
    Command(
        "data audit",
        data.AuditSettings,
        "verl_act.data_prep.pairs.check_pairs",
        "check_pairs",
        "Audit pairs for leakage, imbalance and shortcuts. Exits with 1 on an error.",
        writes="nothing",
    ),
    Command(
        "data tasks",
        data.TasksSettings,
        "verl_act.data_prep.expert.make_tasks",
        "make_tasks",
        "List tasks for multi-turn RL or an eval set.",
    ),
    Command(
        "data sft",
        data.SftSettings,
        "verl_act.data_prep.sft.make_sft",
        "make_sft",
        "Write rows for verl's SFT trainer: imitation of the expert, with reflections if given.",
    ),
    Command(
        "data reflect",
        data.ReflectSettings,
        "verl_act.data_prep.sft.reflect",
        "reflect",
        "Execute expert actions and alternatives; let the model explain why the expert's is better (arXiv 2510.08558).",
    ),
    Command(
        "eval run",
        evaluation.EvaluationSettings,
        "verl_act.evaluate.evaluation",
        "evaluate_model",
        "Measure a model: episodes, next actions, choices, reasoning. Writes metrics.json and every reply. A killed "
        "evaluation resumes where it stopped.",
    ),
    Command(
        "eval compare",
        evaluation.CompareSettings,
        "verl_act.evaluate.table",
        "compare",
        "Compare evaluations in a table.",
        writes="optional",
    ),
    Command(
        "eval report",
        evaluation.ReportSettings,
        "verl_act.report",
        "write_report",
        "Write one or more runs as a page that needs no network, and the same metrics as Markdown and JSON.",
        writes="page",
    ),
    Command(
        "dev methods-table",
        evaluation.MethodsTableSettings,
        "verl_act.evaluate.method_comparison",
        "compare_methods",
        "Write the table of a comparison of methods over its seeds: methods.md and methods.json.",
    ),
    Command(
        "dev catalogue",
        data.CatalogueSettings,
        "verl_act.envs.webshop.make_catalogue",
        "make_catalogue",
        "Make a WebShop catalogue with goals, in WebShop's file format. The defaults produce the embedded catalogue.",
    ),
    Command(
        "dev embedded-model",
        data.EmbeddedModelSettings,
        "verl_act.data_prep.embedded.make_embedded_model",
        "make_embedded_model",
        "Train the package's small initial policy on expert trajectories.",
    ),
    Command(
        "dev smoke",
        smoke.SmokeSettings,
        "verl_act.preflight.smoke",
        "judge_smoke",
        "Judge a run of alfworld/gpu_smoke, and write gpu_smoke.json into its folder. Exits with 1 if it failed.",
        writes="nothing",
    ),
]
COMMANDS = {command.name: command for command in _COMMANDS}
