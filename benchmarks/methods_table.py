"""A comparison of methods in two tables for documents, and all of its numbers kept.

    python benchmarks/methods_table.py runs/methods --name alfworld [--columns success next_action choice_inferable]

Reads a finished comparison (`verl-act run alfworld/methods --out runs/methods --seeds ...`), prints the tables in
Markdown, and copies its full report to `benchmarks/results/<name>_methods.md` and `.json`, the latter with the settings
of every stage and the versions of what ran it. A document has a table below a line that names it, such as
`<!-- table: long alfworld success next_action -->`; `tests/test_docs.py` compares the two.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_act.evaluate.method_comparison import steps_in_words
from verl_act.evaluate.metric_registry import METRICS
from verl_act.manifest import read_manifest
from verl_act.run_folder import METHODS_TABLE, RunFolder

RESULTS = Path(__file__).parent / "results"


def cell(entry: dict[str, Any] | None) -> str:
    """The value, its 95% interval where it has one, and the seeds one by one where there are several."""
    if entry is None or entry["estimate"]["value"] is None:
        return ""
    estimate, metric = entry["estimate"], METRICS[entry["metric"]]
    text = metric.format(estimate["value"])
    if interval := metric.format_interval(estimate["low"], estimate["high"]):
        text += f" ({interval})"
    seeds = ", ".join(metric.format(value) for value in estimate["by_seed"])
    return text + (f" [{seeds}]" if len(estimate["by_seed"]) > 1 else "")


def made_by(run: Path) -> dict[str, Any]:
    """Stage -> the settings and versions that made it, with paths below the run, and embedded models by their names."""
    manifests = filter(None, map(read_manifest, RunFolder(run).records))
    made = {manifest.stage: {"settings": manifest.settings, "versions": manifest.versions} for manifest in manifests}
    text = json.dumps(made).replace(str(run.resolve()), "RUN")
    return json.loads(re.sub(r'"[^"]*/verl_act/assets/', '"', text))


def columns_of(report: Mapping[str, Any], metrics: Sequence[str]) -> list[tuple[str, str]]:
    """The metrics with the splits that have them. Files of questions are splits too, of which episodes have nothing."""
    splits = {
        (metric, entry["split"]) for metric in metrics for entry in report["entries"] if entry["metric"] == metric
    }
    return sorted(splits, key=lambda pair: (metrics.index(pair[0]), pair[1]))


def _entries(report: Mapping[str, Any]) -> dict[tuple[str, str, str], Any]:
    return {
        (entry["method"], entry["metric"], entry["split"]): entry for entry in report["entries"] if not entry["group"]
    }


def _title(metric: str, split: str) -> str:
    return f"{METRICS[metric].full_title}, {split}"


def long_table(report: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """A row for each method, with its steps, intervals and seeds."""
    entries, columns = _entries(report), columns_of(report, metrics)
    rows = [
        [method, steps_in_words(settings["steps"]) or "none"]
        + [cell(entries.get((method, *column))) for column in columns]
        for method, settings in report["methods"].items()
    ]
    return _markdown(["method", "steps", *(_title(*column) for column in columns)], rows, left=2)


def short_table(report: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """A row for each metric and split, with the value of each method."""
    entries, methods = _entries(report), list(report["methods"])
    rows = [
        [_title(metric, split), *(_value(entries.get((method, metric, split))) for method in methods)]
        for metric, split in columns_of(report, metrics)
    ]
    return _markdown(["", *methods], rows, left=1)


def _value(entry: dict[str, Any] | None) -> str:
    return "" if entry is None else METRICS[entry["metric"]].format(entry["estimate"]["value"])


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    rule = "|" + "---|" * left + "---:|" * (len(header) - left)
    return [f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


TABLES = {"long": long_table, "short": short_table}


def read_result(name: str) -> dict[str, Any]:
    """The report of `benchmarks/results/<name>_methods.json`."""
    report: dict[str, Any] = json.loads((RESULTS / f"{name}_methods.json").read_text())
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help="of the files in benchmarks/results: the environment")
    parser.add_argument("--columns", nargs="+", choices=METRICS, default=["success", "next_action", "choice_inferable"])
    options = parser.parse_args()
    folder = RunFolder(options.run)
    report = json.loads(folder.methods_file.read_text())
    report["initial_model"] = Path(report["initial_model"]).name
    report["stages"] = made_by(options.run)
    (RESULTS / f"{options.name}_methods.json").write_text(json.dumps(report) + "\n")
    shutil.copy(folder.methods / METHODS_TABLE, RESULTS / f"{options.name}_methods.md")
    for kind, table in TABLES.items():
        print(
            f"<!-- table: {kind} {options.name} {' '.join(options.columns)} -->",
            *table(report, options.columns),
            "",
            sep="\n",
        )


if __name__ == "__main__":
    main()
