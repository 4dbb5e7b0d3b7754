"""The quickstart as a whole: what it learns, seconds of every stage, the most memory that all processes held together.

    python benchmarks/quickstart.py runs/quickstart-timed

Runs the chain into a folder that must not exist yet, on a machine that should do nothing else (the load before the
start is noted). Memory is the proportional set size, in which a page that processes share counts once. Further
arguments change the recipe. Writes `benchmarks/results/alfworld_quickstart.json`, and prints the table for a document,
which `tests/test_results.py` compares with it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from verl_act.evaluate.metric_registry import METRICS
from verl_act.evaluate.records import METRICS_FILE, read_metrics_file
from verl_act.manifest import process_versions, read_manifest
from verl_act.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results"
SECONDS_BETWEEN_SAMPLES = 5.0
SHOWN = ("success", "choice_inferable", "choice", "next_action_inferable", "next_action")


def memory(process: psutil.Process) -> int:
    """Bytes that the process and everything it started hold now."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def stages(run: Path) -> dict[str, float]:
    """Seconds of every finished stage, in order."""
    folder = RunFolder(run)
    records = {stage.name: read_manifest(folder.record(stage.name)) for stage in folder.plan}
    return {name: record.seconds or 0.0 for name, record in records.items() if record}


def evaluations(run: Path) -> dict[str, Any]:
    """Model -> split -> metric -> its value, interval and number of items."""
    files = [folder / METRICS_FILE for folder in RunFolder(run).evaluations]
    files.sort(key=lambda file: file.stat().st_mtime)
    measured = {file.parent.name: read_metrics_file(file)["metrics"] for file in files}
    return {
        model: {split: {name: metrics[name] for name in SHOWN} for split, metrics in by_split.items()}
        for model, by_split in measured.items()
    }


def quickstart_table(result: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """A row for each metric and split, with the value and interval of every model."""
    models = result["evaluations"]
    rows = []
    for name in metrics:
        for split, measured in next(iter(models.values())).items():
            cells = [models[model][split][name] for model in models]
            values = [
                f"{METRICS[name].format(cell['value'])} ({METRICS[name].format_interval(cell['low'], cell['high'])})"
                for cell in cells
            ]
            rows.append(f"| {METRICS[name].full_title}, {split} ({measured[name]['items']}) | {' | '.join(values)} |")
    return [f"| greedy (items) | {' | '.join(models)} |", "|---|" + "---:|" * len(models), *rows]


TABLES = {"quickstart": quickstart_table}


def read_result(name: str) -> dict[str, Any]:
    """What `benchmarks/results/<name>_quickstart.json` says."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}_quickstart.json").read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--recipe", default="alfworld/quickstart")
    arguments, changes = parser.parse_known_args()
    if arguments.run.exists():
        parser.error(f"{arguments.run} is there already; its finished stages would be skipped, not measured")
    load = os.getloadavg()[0]
    started = time.monotonic()
    command = [sys.executable, "-m", "verl_act", "run", arguments.recipe, "--out", str(arguments.run), *changes]
    process = psutil.Popen(command)
    most, during = 0, "start"
    while process.poll() is None:
        held = memory(process)
        if held > most:
            most, during = held, next(reversed(stages(arguments.run)), "start")
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise SystemExit(f"the chain ended with status {process.returncode}; nothing was written")
    figures = {
        "recipe": arguments.recipe,
        "changes": changes,
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_gib": round(most / 2**30, 2),
        "peak_memory_after_stage": during,
        "stages": stages(arguments.run),
        "evaluations": evaluations(arguments.run),
        "versions": dict(process_versions()),
    }
    for name, seconds in figures["stages"].items():
        print(f"{name:24} {seconds:7.1f} s")
    print(f"{'all':24} {figures['seconds']:7.1f} s, at most {figures['peak_memory_gib']} GiB")
    print(*quickstart_table(figures, SHOWN), sep="\n")
    (RESULTS / f"{arguments.recipe.replace('/', '_')}.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
