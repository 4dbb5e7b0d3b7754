"""A comparison of methods in one short table, and all of its numbers kept.

    python benchmarks/methods_table.py runs/methods --name alfworld [--columns success next_action choice_inferable]

Reads a finished comparison (`verl-act run alfworld/methods --out runs/methods --seeds ...`), prints a
table in Markdown and copies its full report to `benchmarks/results/<name>_methods.md` and `.json`, the latter with the
settings of every stage and the versions of what ran it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
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
    """Stage -> the settings and versions that made it, with paths below the run."""
    manifests = filter(None, map(read_manifest, RunFolder(run).records))
    made = {manifest.stage: {"settings": manifest.settings, "versions": manifest.versions} for manifest in manifests}
    return json.loads(json.dumps(made).replace(str(run.resolve()), "RUN"))


def splits_of(entries: Iterable[tuple[str, str, str]], metric: str) -> list[str]:
    """Files of questions are splits too, of which episodes have nothing."""
    return sorted({split for _, split, other in entries if other == metric})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help="of the files in benchmarks/results: the environment")
    parser.add_argument("--columns", nargs="+", choices=METRICS, default=["success", "next_action", "choice_inferable"])
    options = parser.parse_args()
    folder = RunFolder(options.run)
    report = json.loads(folder.methods_file.read_text())
    entries = {
        (entry["method"], entry["split"], entry["metric"]): entry for entry in report["entries"] if not entry["group"]
    }
    shown = [(metric, split) for metric in options.columns for split in splits_of(entries, metric)]
    titles = [f"{METRICS[metric].full_title}, {split}" for metric, split in shown]
    print("| method | steps | " + " | ".join(titles) + " |")
    print("|---|---|" + "---:|" * len(titles))
    for method, settings in report["methods"].items():
        steps = steps_in_words(settings["steps"]) or "none"
        cells = [cell(entries.get((method, split, metric))) for metric, split in shown]
        print(f"| {method} | {steps} | " + " | ".join(cells) + " |")
    report["initial_model"] = Path(report["initial_model"]).name
    report["stages"] = made_by(options.run)
    (RESULTS / f"{options.name}_methods.json").write_text(json.dumps(report) + "\n")
    shutil.copy(folder.methods / METHODS_TABLE, RESULTS / f"{options.name}_methods.md")


if __name__ == "__main__":
    main()
