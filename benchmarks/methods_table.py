"""A comparison of methods in one short table, and all of its numbers kept.

    python benchmarks/methods_table.py runs/methods --name alfworld [--columns success next_action choice_inferable]

Reads a finished comparison (`python -m verl_act methods alfworld/methods --out runs/methods --seeds ...`), prints a
table in Markdown and copies its full report to `benchmarks/results/<name>_methods.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "success": "episodes won",
    "score": "score",
    "next_action": "next action",
    "choice": "better action chosen",
    "choice_inferable": "better action chosen, inferable",
}


def cell(entry: dict[str, Any]) -> str:
    """Percent, its 95% interval, and the seeds one by one."""
    estimate = entry["estimate"]
    seeds = ", ".join(f"{100 * value:.0f}" for value in estimate["by_seed"])
    interval = f"({100 * estimate['low']:.0f} to {100 * estimate['high']:.0f})"
    return f"{100 * estimate['value']:.1f} {interval}" + (f" [{seeds}]" if len(estimate["by_seed"]) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help="of the files in benchmarks/results: the environment")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=["success", "next_action", "choice_inferable"])
    options = parser.parse_args()
    folder = options.run / "methods"
    report = json.loads((folder / "methods.json").read_text())
    entries = {
        (entry["method"], entry["split"], entry["figure"]): entry for entry in report["entries"] if not entry["group"]
    }
    splits = sorted({split for _, split, _ in entries})
    titles = [f"{COLUMNS[column]}, {split}" for column in options.columns for split in splits]
    print("| method | steps | " + " | ".join(titles) + " |")
    print("|---|---|" + "---:|" * len(titles))
    for method, settings in report["methods"].items():
        steps = ", ".join(f"{stage.split(':')[0]} {count}" for stage, count in settings["steps"].items()) or "none"
        cells = [cell(entries[method, split, figure]) for figure in options.columns for split in splits]
        print(f"| {method} | {steps} | " + " | ".join(cells) + " |")
    report["initial_model"] = Path(report["initial_model"]).name
    (RESULTS / f"{options.name}_methods.json").write_text(json.dumps(report) + "\n")
    shutil.copy(folder / "methods.md", RESULTS / f"{options.name}_methods.md")


if __name__ == "__main__":
    main()
