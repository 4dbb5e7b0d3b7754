"""A comparison of methods over seeds: every figure with an interval over items, a spread over seeds, a paired test.

The items (tasks, states, pairs) are the same for all methods and seeds, so that everything is paired by item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from verl_act.errors import DataError, OptionError
from verl_act.evaluate.files import METRICS_FILE
from verl_act.evaluate.metric_registry import METRICS, Values, read_metrics
from verl_act.evaluate.records import json_lines
from verl_act.evaluate.statistics import Against, Estimate, against, estimate
from verl_act.manifest import make_manifest, read_manifest, write_manifest
from verl_act.names import markdown_text, one_line
from verl_act.options import check_options
from verl_act.output_folder import atomic_folder, writes_folder

MARKDOWN, JSON = "methods.md", "methods.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure of one method on one split."""

    method: str
    split: str
    figure: str
    group: str
    """A task type, a position or a margin; empty for all items."""
    estimate: Estimate
    against: dict[str, Against]
    """Other method -> the test against it."""


@writes_folder("compare_methods")
def compare_methods(
    run: Path, out: Path, methods: Mapping[str, Mapping[str, Any]], initial_model: str = ""
) -> dict[str, Any]:
    """Write `methods.md` and `methods.json` to `out`; returns what is in the latter.

    `methods`: name -> `{"steps": {stage: steps}, "against": [name], "evaluations": {seed: folder}, "training":
    {seed: [stage]}}`, folders below `run`; steps of -1 were left to the number of epochs and are read from the
    trainer's log. All methods began at `initial_model`. Raises `DataError` where an evaluation is missing.
    """
    _check(methods)
    values = {name: _values(run, method) for name, method in methods.items()}
    entries = list(_entries(values, methods))
    manifest = make_manifest(
        "compare_methods",
        settings={"methods": methods, "initial_model": initial_model},
        inputs=[run / path for method in methods.values() for path in method["evaluations"].values()],
    )
    whole = {
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
        (folder / JSON).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        (folder / MARKDOWN).write_text(markdown(whole), encoding="utf-8")
        write_manifest(folder, manifest)
    return whole


def _check(methods: Mapping[str, Any]) -> None:
    """Raise `OptionError` where `methods` has not the form that `compare_methods` documents."""

    def method_options(
        *, steps: dict[str, int], against: list[str], evaluations: dict[str, str], training: dict[str, list[str]]
    ) -> None:
        """What is stated of a method."""

    if not methods:
        raise OptionError("methods", "names no method; give one at least.")
    for name, method in methods.items():
        option = f"methods.{name}"
        if not isinstance(method, Mapping) or not method_options.__annotations__.keys() - {"return"} <= method.keys():
            raise OptionError(option, "must have steps, against, evaluations and training.")
        check_options(method_options, method, option)
        if unknown := [other for other in method["against"] if other not in methods]:
            raise OptionError(option, f"is against {unknown[0]!r}, which is no method.")


def _values(run: Path, method: Mapping[str, Any]) -> list[Values]:
    """One entry a seed."""
    folders = [run / path for path in method["evaluations"].values()]
    for folder in folders:
        if not (folder / METRICS_FILE).is_file():
            raise DataError(f"{folder}: no such evaluation; run `methods` again, it goes on where it stopped.")
    return [read_metrics(folder) for folder in folders]


def _entries(values: Mapping[str, Sequence[Values]], methods: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    keys = sorted({key for seeds in values.values() for metrics in seeds for key in metrics}, key=_rank)
    entries = []
    for key in keys:
        split, figure, group = key
        for name, seeds in values.items():
            items = [metrics.get(key, {}) for metrics in seeds]
            tests = {
                other: test
                for other in methods[name]["against"]
                if (test := against(items, [metrics.get(key, {}) for metrics in values[other]])) is not None
            }
            entries.append(Entry(name, split, figure, group, estimate(items, METRICS[figure].binary), tests))
    return entries


def _rank(key: tuple[str, str, str]) -> tuple[str, int, str]:
    split, figure, group = key
    return split, list(METRICS).index(figure), group


def _seconds(run: Path, method: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Seed -> stage -> wall time; a stage that another method has too is counted in both."""
    by_seed: dict[str, dict[str, float | None]] = {}
    for seed, stages in method["training"].items():
        by_seed[seed] = {}
        for stage in stages:
            mark = read_manifest(run / ".done" / stage.replace(" ", "-"))
            by_seed[seed][stage.removeprefix(f"seed {seed} ")] = mark.seconds if mark else None
        evaluation = read_manifest(run / method["evaluations"][seed]) if seed in method["evaluations"] else None
        if evaluation:
            by_seed[seed]["evaluation"] = evaluation.seconds
    return by_seed


def _steps_taken(run: Path, method: Mapping[str, Any]) -> dict[str, int]:
    """Stage -> optimizer steps; where epochs decided, the last step in the log of the first seed that has one."""
    counts = dict(method["steps"])
    for seed, names in method["training"].items():
        for stage, name in zip(method["steps"], names, strict=False):
            log = run / f"seed-{seed}" / name.removeprefix(f"seed {seed} ") / "metrics.jsonl"
            if counts[stage] < 1 and log.is_file():
                steps = [line["step"] for _, line in json_lines(log) if isinstance(line.get("step"), int)]
                counts[stage] = max(steps, default=-1)
    return counts


def _failed(run: Path, method: Mapping[str, Any]) -> dict[str, list[int]]:
    """Seed -> episodes that the environment ended with an error, and all; seeds without such episodes are left out."""
    by_seed = {}
    for seed, path in method["evaluations"].items():
        manifest = read_manifest(run / path)
        if manifest and manifest.counts.get("episode_errors"):
            by_seed[seed] = [manifest.counts["episode_errors"], manifest.counts["episodes"]]
    return by_seed


_SHARED = ("games", "expert", "alternatives", "pairs", "tasks", "reflections")
"""What the names of these stages begin with; a chain in the same folder has others."""


def _shared(run: Path) -> dict[str, dict[str, Any]]:
    """Stage -> seconds and counts, of the stages that are done once for all methods and seeds."""
    shared = {}
    for mark in sorted((run / ".done").glob("*")):
        name, manifest = mark.name, read_manifest(mark)
        if manifest and name.startswith(_SHARED):
            made = read_manifest(run / name.replace("-", "/", 1))
            shared[name.replace("-", " ", 1)] = {"seconds": manifest.seconds, "counts": made.counts if made else {}}
    return shared


def markdown(whole: Mapping[str, Any]) -> str:
    """Budgets and wall times, then a table per split with one row per method, then the groups."""
    lines = ["# Comparison of methods", "", *_budget_table(whole), ""]
    if notices := failures_in_words(whole["methods"]):
        lines += [*(f"**{markdown_text(notice)}**" for notice in notices), ""]
    entries = whole["entries"]
    for split in dict.fromkeys(entry["split"] for entry in entries):
        of_split = [entry for entry in entries if entry["split"] == split]
        title = markdown_text(split)
        lines += [f"## {title}", "", *_table([entry for entry in of_split if not entry["group"]], "figure"), ""]
        for figure in dict.fromkeys(entry["figure"] for entry in of_split if entry["group"]):
            rows = [entry for entry in of_split if entry["figure"] == figure and entry["group"]]
            lines += [f"### {METRICS[figure].title}, {title}", "", *_table(rows, "group"), ""]
    return "\n".join([*lines, NOTE, ""])


NOTE = (
    "Each figure stands with its 95% interval, ± the standard deviation over seeds, and the change against the methods "
    "named in the first table, on the same items, with its 95% interval and the p of a paired test. The interval of a "
    "share is Wilson's, of as many independent items as the spread between tasks leaves; all else is a bootstrap over "
    "tasks: the states of one game are not independent (evaluations from before tasks were recorded count them as if "
    "they were). The test is McNemar's exact one where "
    "each task has one 0/1 answer, else the signs of the tasks' differences are flipped at random; p is not corrected "
    "for the number of tests. Interval and p are about these trained models on other tasks; what another seed would "
    "give is in ±. Token figures and turns to the goal are sums over sums, all else means over items."
)
"""How to read the tables."""


def failures_in_words(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each method and seed some of whose episodes are in no figure."""
    return [
        f"{name}, seed {seed}: {failed} of {played} episodes ended in an error of the environment. Their tasks are "
        "left out of the method's figures and of the tests against it."
        for name, method in methods.items()
        for seed, (failed, played) in method.get("failed", {}).items()
    ]


_COUNTED = ("games", "tasks", "trajectories", "steps", "states", "replies", "pairs", "reflections")
_LOST = ("cut", "other_action", "empty")
"""The counts of a shared stage that its row shows; the latter where there are any."""


def _budget_table(whole: Mapping[str, Any]) -> list[str]:
    model = f" ({markdown_text(Path(whole['initial_model']).name)})" if whole["initial_model"] else ""
    lines = [f"All methods start from the same model{model} and share the data.", ""]
    if whole.get("shared"):
        lines += ["| shared stage | seconds | what it made |", "| --- | ---: | --- |"]
        for name, stage in whole["shared"].items():
            counts = stage["counts"]
            keys = [*(key for key in _COUNTED if key in counts), *(key for key in _LOST if counts.get(key))]
            made = ", ".join(f"{key.replace('_', ' ')} {counts[key]}" for key in keys)
            lines.append(_line([markdown_text(name), f"{stage['seconds']:.0f}", made]))
        lines.append("")
    lines += [
        "| method | training steps | tested against | seeds | training, minutes a seed | seconds a seed, by stage |"
    ]
    lines += ["| --- | --- | --- | --- | ---: | --- |"]
    for name, method in whole["methods"].items():
        steps = steps_in_words(method["steps"])
        times = mean_seconds(method["seconds"])
        training = sum(seconds for stage, seconds in times.items() if stage != "evaluation")
        by_stage = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in times.items())
        seeds = ", ".join(method["evaluations"])
        other = "; ".join(method["against"])
        named = [markdown_text(text) for text in (name, steps or "none", other, seeds)]
        lines.append(_line([*named, f"{training / 60:.1f}", markdown_text(by_stage)]))
    return lines


def steps_in_words(steps: Mapping[str, int]) -> str:
    """Stage -> steps, as a cell; a stage whose epochs decide has -1."""
    named = {stage: str(count) if count > 0 else "by epochs" for stage, count in steps.items()}
    return ", ".join(f"{stage.partition(':')[0]} {count}" for stage, count in named.items())


def mean_seconds(by_seed: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Stage -> mean wall time over the seeds for which it is known."""
    known: dict[str, list[float]] = {}
    for times in by_seed.values():
        for stage, seconds in times.items():
            if seconds is not None:
                known.setdefault(stage, []).append(seconds)
    return {stage: fmean(seconds) for stage, seconds in known.items()}


def _table(entries: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    rows: dict[str, dict[str, str]] = {}
    for entry in entries:
        title = METRICS[entry["figure"]].title if column == "figure" else entry["group"].replace("_", " ")
        rows.setdefault(title, {})[entry["method"]] = cell(entry)
    lines = [_line([column, *map(markdown_text, methods)]), f"| --- |{' ---: |' * len(methods)}"]
    return lines + [
        _line([markdown_text(title), *(row.get(name, "") for name in methods)]) for title, row in rows.items()
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(entry: Mapping[str, Any]) -> str:
    """One entry as text."""
    estimate, share = entry["estimate"], METRICS[entry["figure"]].share
    if estimate["value"] is None:
        return ""
    text = format_metric(estimate["value"], share)
    if estimate["low"] is not None:
        text += f" [{format_metric(estimate['low'], share)}, {format_metric(estimate['high'], share)}]"
    if estimate["deviation"] is not None:
        text += f" ± {format_metric(estimate['deviation'], share)}"
    text += f", n = {estimate['items']}"
    # They name methods; the brackets of an interval are left as they are.
    tests = (re.sub(r"([\\|]|<(?=\S))", r"\\\1", one_line(said)) for said, _ in tests_in_words(entry))
    return "; ".join([text, *tests])


def tests_in_words(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Each test of an entry as text, which names the other method where there are several, and its p."""
    share, several = METRICS[entry["figure"]].share, len(entry["against"]) > 1
    tests = []
    for other, test in entry["against"].items():
        change = format_change_interval(test, share) + (f" to {other}" if several else "")
        tests.append((f"{change}, {format_p(test['p'])}", test["p"]))
    return tests


def format_metric(value: float, share: bool) -> str:
    """A share in percent, any other figure with three digits."""
    if share:
        return f"{value:.1%}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def format_change(difference: float, share: bool) -> str:
    """A difference with its sign; of shares in points."""
    text = f"{100 * difference:+.1f} points" if share else f"{difference:+.3g}"
    return text.replace("-", "−")


def format_change_interval(test: Mapping[str, Any], share: bool) -> str:
    """A difference with its interval, where it has one."""
    text = format_change(test["difference"], share)
    if test.get("low") is None:
        return text
    low, high = (format_change(test[end], share).removesuffix(" points") for end in ("low", "high"))
    return f"{text} [{low}, {high}]"


def format_p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
