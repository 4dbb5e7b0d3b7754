"""Compare methods over seeds: each metric with an interval over items, a spread over seeds and a paired test.

All methods and seeds are evaluated on the same items (tasks, states, pairs), so tests are paired by item.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any

from verl_act.errors import DataError, OptionError
from verl_act.evaluate.metric_registry import HOW_TO_READ, METRICS, MetricItems, read_metrics, table_order
from verl_act.evaluate.records import METRICS_FILE
from verl_act.evaluate.statistics import SIGNIFICANT, Against, Estimate, against, holm
from verl_act.evaluate.table import Cell, estimate_cell, markdown_table
from verl_act.manifest import Manifest, make_manifest, read_manifest, write_manifest
from verl_act.names import markdown_text
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.run_folder import METHODS, METHODS_TABLE, RunFolder, TrainingFolder, metrics_by_step, stage_name
from verl_act.settings.evaluation import MethodsTableSettings


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric of one method on one split."""

    method: str
    split: str
    metric: str
    group: str
    """A task type, a position or a margin; empty for all items."""
    estimate: Estimate
    against: dict[str, Against]
    """Other method -> the difference from it, with its Holm-adjusted p."""


@writes_folder("compare_methods")
def compare_methods(settings: MethodsTableSettings, out: str | PathLike[str]) -> Manifest:
    """Write `methods.md` and `methods.json` to `out`, with a manifest; return the manifest.

    Folders are relative to the run. Steps of -1 mean that epochs decided: the count is then read from the trainer's
    log. Raises `DataError` if an evaluation is missing.
    """
    check_settings(settings)
    run, initial_model = settings.run, settings.initial_model
    methods = {name: method.model_dump() for name, method in settings.methods.items()}
    values = {name: _values(run, method) for name, method in methods.items()}
    entries = list(_entries(values, methods))
    manifest = make_manifest(
        "compare_methods",
        settings=settings.recorded(),
        inputs=[run / path for method in methods.values() for path in method["evaluations"].values()],
    )
    comparison = {
        "methods": {
            name: {
                **method,
                "steps": _steps_taken(run, method),
                "seconds": _seconds(run, method),
                "failed": _failed(run, method),
            }
            for name, method in methods.items()
        },
        "initial_model": initial_model,
        "shared": _shared(run),
        "versions": manifest.versions,
        "entries": [asdict(entry) for entry in entries],
    }
    with atomic_folder(out) as folder:
        (folder / METHODS).write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
        (folder / METHODS_TABLE).write_text(markdown(comparison), encoding="utf-8")
        write_manifest(folder, manifest)
    return manifest


def check_settings(settings: MethodsTableSettings) -> None:
    """Raise `OptionError` if a method is compared with one that is not in the table."""
    if not settings.methods:
        raise OptionError("methods", "names no method; give at least one.")
    for name, method in settings.methods.items():
        if unknown := [other for other in method.against if other not in settings.methods]:
            raise OptionError(f"methods.{name}", f"is compared with {unknown[0]!r}, which is not a method.")


def _values(run: Path, method: Mapping[str, Any]) -> list[MetricItems]:
    """One entry per seed."""
    folders = [run / path for path in method["evaluations"].values()]
    for folder in folders:
        if not (folder / METRICS_FILE).is_file():
            raise DataError(f"{folder}: no such evaluation; run the recipe again, it resumes where it stopped.")
    return [read_metrics(folder) for folder in folders]


def _entries(values: Mapping[str, Sequence[MetricItems]], methods: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    entries = []
    for key in sorted({key for seeds in values.values() for metrics in seeds for key in metrics}, key=table_order):
        split, metric, group = key
        for name, seeds in values.items():
            items = [metrics.get(key, {}) for metrics in seeds]
            differences = {
                other: difference
                for other in methods[name]["against"]
                if (difference := against(items, [metrics.get(key, {}) for metrics in values[other]])) is not None
            }
            entries.append(Entry(name, split, metric, group, METRICS[metric].estimate(items), differences))
    for split in dict.fromkeys(entry.split for entry in entries):
        _test([entry for entry in entries if entry.split == split], methods)
    return entries


def _test(table: Sequence[Entry], methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Set `p` of the table's tests: those of tested metrics, between methods of which no trained one has one seed."""
    tests = [
        (entry, other, max(difference.p_tasks, difference.p_seeds))
        for entry in table
        for other, difference in entry.against.items()
        if METRICS[entry.metric].tested and difference.p_seeds is not None
        if not any(_has_one_training(methods[name]) for name in (entry.method, other))
    ]
    for (entry, other, _), p in zip(tests, holm([p for _, _, p in tests]), strict=True):
        entry.against[other] = replace(entry.against[other], p=p)


def _has_one_training(method: Mapping[str, Any]) -> bool:
    """Whether the method was trained with a single seed, which says nothing about another training."""
    return bool(method["steps"]) and len(method["evaluations"]) < 2


def _trainings(run: Path, method: Mapping[str, Any], seed: str) -> list[tuple[str, TrainingFolder]]:
    """The training stages of the method, as it names them, and their folders, in order."""
    stages, folder = method["stages"], RunFolder(run, int(seed))
    return [(stage, folder.training(stages[:count])) for count, stage in enumerate(stages, 1)]


def _seconds(run: Path, method: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Seed -> stage -> wall time in seconds. A stage that methods share counts for each of them."""
    by_seed: dict[str, dict[str, float | None]] = {}
    for seed, path in method["evaluations"].items():
        by_seed[seed] = {}
        for _, trained in _trainings(run, method, seed):
            mark = read_manifest(RunFolder(run).record(stage_name(trained.title, int(seed))))
            by_seed[seed][trained.title] = mark.seconds if mark else None
        if evaluation := read_manifest(run / path):
            by_seed[seed]["evaluation"] = evaluation.seconds
    return by_seed


def _steps_taken(run: Path, method: Mapping[str, Any]) -> dict[str, int]:
    """Stage -> optimizer steps. If epochs decided: the last step logged by the first seed that has a log."""
    counts = dict(method["steps"])
    for seed in method["evaluations"]:
        trainings = _trainings(run, method, seed)
        for stage in (stage for stage, count in counts.items() if count < 1):  # a method may have it several times
            logged = [metrics_by_step(trained.metrics_files) for name, trained in trainings if name == stage]
            counts[stage] = sum(max(steps, default=0) for steps in logged) or -1
    return counts


def _failed(run: Path, method: Mapping[str, Any]) -> dict[str, list[int]]:
    """Seed -> [episodes that ended in an environment error, all episodes]; only seeds with such episodes."""
    by_seed = {}
    for seed, path in method["evaluations"].items():
        manifest = read_manifest(run / path)
        if manifest and manifest.counts.get("episode_errors"):
            by_seed[seed] = [manifest.counts["episode_errors"], manifest.counts["episodes"]]
    return by_seed


def _shared(run: Path) -> dict[str, dict[str, Any]]:
    """Stage -> seconds and counts, for the finished stages that all methods and seeds share."""
    shared = {}
    for stage in RunFolder(run).plan:
        if stage.shared and (mark := read_manifest(RunFolder(run).record(stage.name))):
            made = read_manifest(run / stage.output)
            shared[stage.name] = {"seconds": mark.seconds, "counts": made.counts if made else {}}
    return shared


@dataclass(frozen=True, slots=True)
class MethodTable:
    """One row per metric or, in a `detail` table, per group of one metric; one column per method."""

    title: str
    split: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    detail: bool
    run: str = ""
    """The comparison's run, where a report has several."""


@dataclass(frozen=True, slots=True)
class MethodBudget:
    """The training budget and time of a method; `minutes` of training per seed. `run`: as in `MethodTable`."""

    name: str
    steps: str
    against: str
    seeds: str
    minutes: str
    by_stage: str
    run: str = ""


def method_budgets(comparison: Mapping[str, Any]) -> list[MethodBudget]:
    """The budget of every method, in the recipe's order."""
    budgets = []
    for name, method in comparison["methods"].items():
        times = _mean_seconds(method["seconds"])
        budgets.append(
            MethodBudget(
                name=name,
                steps=steps_in_words(method["steps"]) or "none",
                against="; ".join(method["against"]),
                seeds=", ".join(method["evaluations"]),
                minutes=f"{sum(seconds for stage, seconds in times.items() if stage != 'evaluation') / 60:.1f}",
                by_stage=", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in times.items()),
            )
        )
    return budgets


def method_tables(comparison: Mapping[str, Any]) -> list[MethodTable]:
    """Per split: a table of the metrics over all items, then one for each metric by group."""
    tables = []
    for split in dict.fromkeys(entry["split"] for entry in comparison["entries"]):
        entries = [entry for entry in comparison["entries"] if entry["split"] == split]
        ungrouped = [entry for entry in entries if not entry["group"]]
        tables.append(_method_table("All metrics", split, ungrouped, comparison))
        for metric in dict.fromkeys(entry["metric"] for entry in entries if entry["group"]):
            grouped = [entry for entry in entries if entry["metric"] == metric]
            tables.append(_method_table(METRICS[metric].title, split, grouped, comparison, detail=True))
    return tables


def _method_table(
    title: str, split: str, entries: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any], detail: bool = False
) -> MethodTable:
    methods = list(comparison["methods"])
    rows: dict[str, list[Cell]] = {}
    for (metric, group), row in groupby(entries, key=lambda entry: (entry["metric"], entry["group"])):
        by_method = {entry["method"]: entry for entry in row}
        if METRICS[metric].optional and not any(entry["estimate"]["value"] for entry in by_method.values()):
            continue
        cells = [_cell(by_method[name], comparison) if name in by_method else Cell() for name in methods]
        rows[group.replace("_", " ") if detail else METRICS[metric].full_title] = cells
    return MethodTable(title, split, methods, list(rows.items()), detail)


def _cell(entry: Mapping[str, Any], comparison: Mapping[str, Any]) -> Cell:
    changes = [_change(entry, other, comparison) for other in entry["against"]]
    return estimate_cell(METRICS[entry["metric"]], Estimate(**entry["estimate"]), changes=changes)


def _change(entry: Mapping[str, Any], other: str, comparison: Mapping[str, Any]) -> tuple[str, bool]:
    """(text, whether it is clear) of the difference from another method, which is named if there are several."""
    metric, difference = METRICS[entry["metric"]], entry["against"][other]
    text = metric.format_change(difference["difference"], difference["low"], difference["high"])
    methods = comparison["methods"]
    parts = [
        f"{text} to {other}" if len(entry["against"]) > 1 else text,
        "" if difference["p"] is None else format_p(difference["p"]),
        "one seed" if any(_has_one_training(methods[name]) for name in (entry["method"], other)) else "",
    ]
    return ", ".join(filter(None, parts)), difference["p"] is not None and difference["p"] < SIGNIFICANT


def markdown(comparison: Mapping[str, Any]) -> str:
    """As Markdown: budgets and wall times, then per split a table over all items and one per grouped metric."""
    model = f" ({Path(comparison['initial_model']).name})" if comparison["initial_model"] else ""
    start = f"All methods start from the same model{model} and share the data."
    blocks = ["# Comparison of methods", markdown_text(start)]
    if shared := comparison.get("shared"):
        rows = [[name, f"{stage['seconds']:.0f}", _made(stage["counts"])] for name, stage in shared.items()]
        blocks.append(markdown_table(["shared stage", "seconds", "what it made"], rows, "lrl"))
    budgets, *tables = markdown_blocks(method_budgets(comparison), method_tables(comparison), "##")
    failures = [f"**{markdown_text(notice)}**" for notice in failures_in_words(comparison["methods"])]
    return "\n\n".join([*blocks, budgets, *failures, *tables, NOTE]) + "\n"


def markdown_blocks(budgets: Sequence[MethodBudget], tables: Sequence[MethodTable], heading: str = "###") -> list[str]:
    """The table of budgets, then the titles and tables of the metrics, as Markdown."""
    header = ["method", "training steps", "tested against", "seeds", "training, minutes a seed", "by stage"]
    rows = [
        [
            *(f"{row.name} ({row.run})" if row.run else row.name, row.steps, row.against or "–"),
            *(row.seeds, row.minutes, row.by_stage),
        ]
        for row in budgets
    ]
    blocks = [markdown_table(header, rows, "llllrl")]
    for table in tables:
        title = ", ".join(filter(None, (table.title, table.split, table.run)))
        blocks.append(f"{'###' if table.detail else heading} {markdown_text(title)}")
        header = ["group" if table.detail else "metric", *table.columns]
        blocks.append(markdown_table(header, [[name, *cells] for name, cells in table.rows], "lr"))
    return blocks


NOTE = (
    f"{HOW_TO_READ} With several seeds, ± is the standard deviation over seeds. Changes are against the methods named "
    "in the first table. p is the larger of two: that of a paired test over tasks (McNemar's exact test where each "
    "task has one 0/1 answer, else random flips of the signs of the tasks' differences) and that of Welch's t-test "
    "over seeds. It is corrected by Holm's method for all tests of the table. A training with one seed has no p, since "
    "another training may come out differently."
)
"""How to read the tables."""


def failures_in_words(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence for each method and seed that has episodes left out of its metrics."""
    return [
        f"{name}, seed {seed}: {failed} of {played} episodes ended in an error of the environment. Their tasks are "
        "left out of the method's metrics and of the tests against it."
        for name, method in methods.items()
        for seed, (failed, played) in method.get("failed", {}).items()
    ]


_COUNTED = ("games", "tasks", "trajectories", "steps", "states", "replies", "pairs", "reflections")
_LOST = ("cut", "other_action", "empty")
"""Counts shown in a shared stage's row; those in `_LOST` only if they are not 0."""


def _made(counts: Mapping[str, Any]) -> str:
    keys = [*(key for key in _COUNTED if key in counts), *(key for key in _LOST if counts.get(key))]
    return ", ".join(f"{key.replace('_', ' ')} {counts[key]}" for key in keys)


def steps_in_words(steps: Mapping[str, int]) -> str:
    """`steps` (stage -> steps; -1 if epochs decide) as the text of a table cell."""
    named = {stage: str(count) if count > 0 else "by epochs" for stage, count in steps.items()}
    return ", ".join(f"{stage.partition(':')[0]} {count}" for stage, count in named.items())


def _mean_seconds(by_seed: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Stage -> mean wall time in seconds over the seeds for which it is known."""
    known: dict[str, list[float]] = {}
    for times in by_seed.values():
        for stage, seconds in times.items():
            if seconds is not None:
                known.setdefault(stage, []).append(seconds)
    return {stage: fmean(seconds) for stage, seconds in known.items()}


def format_p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
