"""The method tables of a comparison over seeds, from the file that `compare-methods` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_act.evaluate.methods import format_metric, mean_seconds, steps_in_words, tests_in_words
from verl_act.evaluate.metric_registry import METRICS
from verl_act.report.read import Run


@dataclass(frozen=True, slots=True)
class MethodTest:
    """A test against another method. `clear`: p is below 0.05."""

    text: str
    clear: bool


@dataclass(frozen=True, slots=True)
class MethodCell:
    """One metric of a method, as text and as numbers; all empty if the method does not have it.

    As in `methods.json`, `estimate` is an `Estimate` and `against` is other method -> `Against` (both of
    `evaluate.statistics`).
    """

    value: str = ""
    interval: str = ""
    spread: str = ""
    tests: tuple[MethodTest, ...] = ()
    estimate: Mapping[str, Any] = field(default_factory=dict)
    against: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MethodTable:
    """One row per method. `detail` tables (of groups) are collapsed. `run` is empty if only one run has methods."""

    run: str
    title: str
    split: str
    columns: list[str]
    rows: list[tuple[str, list[MethodCell]]]
    detail: bool


@dataclass(frozen=True, slots=True)
class MethodBudget:
    """The training budget and time of a method; `minutes` of training per seed. `run`: as in `MethodTable`."""

    run: str
    name: str
    steps: str
    against: str
    seeds: str
    minutes: float
    by_stage: str


def method_tables(runs: Sequence[Run]) -> list[MethodTable]:
    """Per split: a table of the metrics over all items, then those by task type, position and margin."""
    tables = []
    for run in runs:
        entries = run.comparison.get("entries", [])
        for split in dict.fromkeys(entry["split"] for entry in entries):
            of_split = [entry for entry in entries if entry["split"] == split]
            whole = [entry for entry in of_split if not entry["group"]]
            tables.append(_table(_name(run, runs), "All metrics", split, whole, False))
            for metric in dict.fromkeys(entry["figure"] for entry in of_split if entry["group"]):
                grouped = [entry for entry in of_split if entry["figure"] == metric and entry["group"]]
                tables.append(_table(_name(run, runs), METRICS[metric].title, split, grouped, True))
    return tables


def methods_start(runs: Sequence[Run]) -> str:
    """One sentence about the model that the methods start from; empty without a comparison."""
    compared = [run for run in runs if run.comparison]
    models = [_initial_model(run) for run in compared]
    names = [name for name, _ in models]
    if not compared:
        return ""
    alike = all(names) and len({sha or name for name, sha in models}) == 1
    if len(compared) == 1:
        if alike:
            return f"All methods start from the same model ({names[0]}) and share the data."
        return "All methods share the data; the model that they start from is not recorded."
    if alike:
        model = f"All methods start from the same model ({names[0]})."
    else:
        known = [f"{name} (SHA-256 {sha[:12]})" if sha else name for name, sha in models]
        parts = (
            f"those of {run.name} from {name or 'one not recorded'}" for run, name in zip(compared, known, strict=True)
        )
        model = f"The methods are not known to start from the same model: {', '.join(parts)}."
    return f"{model} Those of one comparison share the data."


def _initial_model(run: Run) -> tuple[str, str]:
    """(name, hash of its files); either is empty if unknown."""
    name = run.comparison.get("initial_model", "")
    manifests = (
        evaluation.manifest for evaluation in run.evaluations if evaluation.model == name and evaluation.manifest
    )
    hashes = (manifest.settings.get("model_digest") for manifest in manifests)
    return name, next(filter(None, hashes), "")


def method_budgets(runs: Sequence[Run]) -> list[MethodBudget]:
    """The budget of every method, in the recipe's order."""
    budgets = []
    for run in runs:
        for name, method in run.comparison.get("methods", {}).items():
            times = mean_seconds(method["seconds"])
            training = sum(seconds for stage, seconds in times.items() if stage != "evaluation")
            budgets.append(
                MethodBudget(
                    run=_name(run, runs),
                    name=name,
                    steps=steps_in_words(method["steps"]),
                    against="; ".join(method["against"]),
                    seeds=", ".join(method["evaluations"]),
                    minutes=training / 60,
                    by_stage=", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in times.items()),
                )
            )
    return budgets


def _name(run: Run, runs: Sequence[Run]) -> str:
    return run.name if sum(bool(other.comparison) for other in runs) > 1 else ""


def _table(run: str, title: str, split: str, entries: Sequence[Mapping[str, Any]], detail: bool) -> MethodTable:
    rows: dict[str, dict[str, MethodCell]] = {}
    columns: dict[str, None] = {}
    for entry in entries:
        column = entry["group"].replace("_", " ") if detail else METRICS[entry["figure"]].title
        columns[column] = None
        rows.setdefault(entry["method"], {})[column] = _cell(entry)
    listed = [(name, [row.get(column, MethodCell()) for column in columns]) for name, row in rows.items()]
    return MethodTable(run, title, split, list(columns), listed, detail)


def _cell(entry: Mapping[str, Any]) -> MethodCell:
    estimate = entry["estimate"]
    if estimate["value"] is None:
        return MethodCell()
    share = METRICS[entry["figure"]].share

    interval = (
        f"{format_metric(estimate['low'], share)}–{format_metric(estimate['high'], share)}"
        if estimate["low"] is not None
        else ""
    )
    return MethodCell(
        value=format_metric(estimate["value"], share),
        interval=f"{interval}, n = {estimate['items']}".removeprefix(", "),
        spread=f"± {format_metric(estimate['deviation'], share)} over seeds"
        if estimate["deviation"] is not None
        else "",
        tests=tuple(MethodTest(text, p < 0.05) for text, p in tests_in_words(entry)),
        estimate=estimate,
        against=entry["against"],
    )
