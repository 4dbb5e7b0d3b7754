"""All commands of the command line: their settings and the functions that run them.

A command's function is imported only when it runs, so that `--help` is quick. It is called as `function(settings,
out)`; the module's `check_settings(settings)`, if there is one, finds before any work what a settings class alone
cannot know, such as the splits of an environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from verl_act.settings import data, evaluation
from verl_act.settings.base import Settings


@dataclass(frozen=True, slots=True)
class Command:
    """A command. `function` is what it runs, as `module:name`, and `help` its text on the command line."""

    settings: type[Settings]
    function: str
    help: str
    writes: Literal["folder", "optional", "page", "nothing"] = "folder"
    """What `--out` names: a `folder`, an optional folder (`optional`), a `page`, or `nothing` (no `--out`)."""

    def check(self, settings: Settings) -> None:
        """Raise `ActError` for settings that cannot work."""
        module = import_module(self.function.partition(":")[0])
        if hasattr(module, "check_settings"):
            module.check_settings(settings)

    def run(self, settings: Settings, out: Path | None) -> Any:
        return resolve_name(self.function)(settings, out)


COMMANDS: dict[str, Command] = {
    "data games": Command(
        data.GamesSettings,
        "verl_act.envs.make_games:make_games",
        "Generate games of an environment, in its file format. ALFWorld's are won on the engine first.",
    ),
    "data expert": Command(
        data.ExpertSettings,
        "verl_act.data_prep.expert.collect_expert:collect_expert",
        "Play tasks with an expert; keep the trajectories that win and can be replayed.",
    ),
    "data import": Command(
        data.ImportSettings,
        "verl_act.data_prep.imports.import_trajectories:import_trajectories",
        "Expert trajectories from published data: respelled, replayed on the engine, kept where they win.",
    ),
    "data alternatives": Command(
        data.AlternativesSettings,
        "verl_act.data_prep.alternatives.sample_alternatives:sample_alternatives",
        "Sample the initial policy at every expert state. A killed run resumes where it stopped.",
    ),
    "data pairs": Command(
        data.PairsSettings,
        "verl_act.data_prep.pairs.build_pairs:build_pairs",
        "Pair expert actions with sampled alternatives; measure margins in the environment.",
    ),
    "data preferences": Command(
        data.PreferencesSettings,
        "verl_act.data_prep.pairs.import_preferences:import_preferences",
        "Preference data (chosen and rejected, or scored completions) as pairs; invalid rows are listed with reasons.",
    ),
    "data audit": Command(
        data.AuditSettings,
        "verl_act.data_prep.pairs.check_pairs:check_pairs",
        "Audit pairs for leakage, imbalance and shortcuts. Exits with 1 on an error.",
        writes="nothing",
    ),
    "data tasks": Command(
        data.TasksSettings,
        "verl_act.data_prep.expert.make_tasks:make_tasks",
        "List tasks for multi-turn RL or an eval set.",
    ),
    "data sft": Command(
        data.SftSettings,
        "verl_act.data_prep.sft.make_sft:make_sft",
        "Write rows for verl's SFT trainer: imitation of the expert, with reflections if given.",
    ),
    "data reflect": Command(
        data.ReflectSettings,
        "verl_act.data_prep.sft.reflect:reflect",
        "Execute expert actions and alternatives; let the model explain why the expert's is better (arXiv 2510.08558).",
    ),
    "eval run": Command(
        evaluation.EvaluationSettings,
        "verl_act.evaluate.evaluation:evaluate_model",
        "Measure a model: episodes, next actions, choices, reasoning. Writes metrics.json and every reply. A killed "
        "evaluation resumes where it stopped.",
    ),
    "eval compare": Command(
        evaluation.CompareSettings,
        "verl_act.evaluate.table:compare",
        "Compare evaluations in a table.",
        writes="optional",
    ),
    "eval report": Command(
        evaluation.ReportSettings,
        "verl_act.report:write_report",
        "Write one or more runs as a page that needs no network, and the same metrics as Markdown and JSON.",
        writes="page",
    ),
    "dev methods-table": Command(
        evaluation.MethodsTableSettings,
        "verl_act.evaluate.method_comparison:compare_methods",
        "Write the table of a comparison of methods over its seeds: methods.md and methods.json.",
    ),
    "dev catalogue": Command(
        data.CatalogueSettings,
        "verl_act.envs.webshop.make_catalogue:make_catalogue",
        "Make a WebShop catalogue with goals, in WebShop's file format. The defaults produce the embedded catalogue.",
    ),
    "dev embedded-model": Command(
        data.EmbeddedModelSettings,
        "verl_act.data_prep.embedded.make_embedded_model:make_embedded_model",
        "Train the package's small initial policy on expert trajectories.",
    ),
    "dev smoke": Command(
        evaluation.SmokeSettings,
        "verl_act.preflight.smoke:judge_smoke",
        "Judge a run of alfworld/gpu_smoke, and write gpu_smoke.json into its folder. Exits with 1 if it failed.",
        writes="nothing",
    ),
}
