"""A comparison of methods in one short table, and all of its numbers kept.

    python benchmarks/methods_table.py runs/methods --name alfworld [--columns success next_action choice_inferable]

Reads a finished comparison (`python -m verl_act methods alfworld/methods --out runs/methods --seeds ...`), prints a
table in Markdown and copies its full report to `benchmarks/results/<name>_methods.md` and `.json`, the latter with the
command of every stage and the versions of what ran it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from verl_act.evaluate.methods import steps_in_words
from verl_act.evaluate.metric_registry import METRICS

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
    """Stage -> the command that made it, with paths below the run, and the versions of what it ran on."""
    found = {}
    for mark in sorted((run / ".done").glob("*/manifest.json")):
        manifest = json.loads(mark.read_text())
        command = " ".join(manifest["settings"].get("command", []))
        command = re.sub(r"\S*/(?=verl_act/)", "", command.replace(str(run.resolve()), "RUN"))
        found[mark.parent.name] = {"command": command}
        found[mark.parent.name]["versions"] = manifest["versions"]
    return found


def splits_of(entries: Iterable[tuple[str, str, str]], metric: str) -> list[str]:
    """Files of questions are splits too, of which episodes have nothing."""
    return sorted({split for _, split, other in entries if other == metric})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help="of the files in benchmarks/results: the environment")
    parser.add_argument("--columns", nargs="+", choices=METRICS, default=["success", "next_action", "choice_inferable"])
    options = parser.parse_args()
    folder = options.run / "methods"
    report = json.loads((folder / "methods.json").read_text())
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
    shutil.copy(folder / "methods.md", RESULTS / f"{options.name}_methods.md")


if __name__ == "__main__":
    main()
