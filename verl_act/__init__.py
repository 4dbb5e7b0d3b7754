"""Agentic Critical Training (ACT, arXiv 2603.08706) as a plugin for verl.

The public names below are imported on first use. Every stage is a function `stage(settings, out)`, with the settings
class that recipes and the command line use too:

    from verl_act import ExpertSettings, collect_expert

    manifest = collect_expert(ExpertSettings(env="alfworld", split="train", limit=100), "expert")
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("verl-act")
except PackageNotFoundError:  # a folder on the path, such as an exported recipe
    __version__ = "0+unknown"

_NAMES = {
    "verl_act.chain": ["load_recipe", "run_recipe"],
    "verl_act.data_prep.alternatives.sample_alternatives": ["sample_alternatives"],
    "verl_act.data_prep.expert.collect_expert": ["collect_expert"],
    "verl_act.data_prep.expert.make_tasks": ["make_tasks"],
    "verl_act.data_prep.imports.import_trajectories": ["import_trajectories"],
    "verl_act.data_prep.pairs.build_pairs": ["build_pairs"],
    "verl_act.data_prep.pairs.check_pairs": ["check_pairs"],
    "verl_act.data_prep.pairs.import_preferences": ["import_preferences"],
    "verl_act.data_prep.sft.make_sft": ["make_sft"],
    "verl_act.data_prep.sft.reflect": ["reflect"],
    "verl_act.envs.base": ["EnvSpec"],
    "verl_act.envs.registry": ["register_env"],
    "verl_act.evaluate.evaluation": ["evaluate_model"],
    "verl_act.manifest": ["Manifest"],
    "verl_act.prompts.registry": ["register_template"],
    "verl_act.prompts.template": ["Template"],
    "verl_act.report": ["write_report"],
    "verl_act.reward_fns.route": ["compute_score"],
    "verl_act.schema": ["Alternatives", "Context", "Pair", "Step", "Turn"],
    "verl_act.settings.data": [
        *("AlternativesSettings", "AuditSettings", "ExpertSettings", "ImportSettings", "PairsSettings"),
        *("PreferencesSettings", "ReflectSettings", "SftSettings", "TasksSettings"),
    ],
    "verl_act.settings.evaluation": ["EvaluationSettings", "ReportSettings"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'verl_act' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
