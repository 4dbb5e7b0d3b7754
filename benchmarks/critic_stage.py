"""What the critic stage teaches, seed by seed: choice accuracy over its steps, next actions before and after.

    for seed in 0 1; do python -m verl_act chain alfworld/quickstart --out runs/seed$seed seed=$seed; done
    python benchmarks/critic_stage.py runs/seed0 runs/seed1

Reads finished chains (their metrics and evaluations, all on held-out games), prints a table and writes
`benchmarks/results/critic_stage.json` and the curves, `critic_stage.svg`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
VALIDATION = re.compile(r"val-core/act/\w+/choice/([\w/]+)/acc/mean@1")
FIGURES = {
    "choice, inferable": ("choice", "right_inferable"),
    "choice, all": ("choice", "right"),
    "choice, well-formed": ("choice", "well_formed"),
    "choice, names a candidate": ("choice", "named_a_candidate"),
    "next action, inferable": ("next_action", "right_inferable"),
    "next action, all": ("next_action", "right"),
    "episodes won": ("episodes", "success"),
}


def curves(run: Path) -> dict[str, dict[int, float]]:
    """Split -> step -> accuracy of the validation's choices."""
    found: dict[str, dict[int, float]] = {}
    for line in (run / "critic" / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry["data"].items():
            if match := VALIDATION.fullmatch(name):
                found.setdefault(match[1], {})[entry["step"]] = round(value, 4)
    return found


def evaluations(run: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Model -> split -> figure."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model in ("initial", "critic", "action"):
        figures: dict[str, Any] = json.loads((run / "evaluation" / model / "figures.json").read_text())
        splits = sorted(figures["choice"])
        found[model] = {
            split: {
                title: round(figures[section][split][name]["share"], 4) for title, (section, name) in FIGURES.items()
            }
            for split in splits
        }
    return found


def draw(runs: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for run, splits in runs.items():
        for split, points in splits.items():
            axes.plot(list(points), list(points.values()), marker="o", label=f"{run}, {split}")
    axes.axhline(0.5, color="grey", linestyle=":", label="chance")
    axes.set(xlabel="GRPO step", ylabel="choice accuracy, held out, inferable", ylim=(0.4, 1.0))
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    runs = {run.name: run for run in parser.parse_args().runs}
    measured = {name: {"validation": curves(run), "evaluation": evaluations(run)} for name, run in runs.items()}
    for name, figures in measured.items():
        print(f"\n{name}\n{'figure':28} {'split':13} {'initial':>8} {'critic':>8} {'action':>8}")
        for split in figures["evaluation"]["initial"]:
            for title in FIGURES:
                row = [figures["evaluation"][model][split][title] for model in ("initial", "critic", "action")]
                print(f"{title:28} {split:13} {row[0]:8.1%} {row[1]:8.1%} {row[2]:8.1%}")
    (RESULTS / "critic_stage.json").write_text(json.dumps(measured, indent=2) + "\n")
    draw({name: figures["validation"] for name, figures in measured.items()}, RESULTS / "critic_stage.svg")


if __name__ == "__main__":
    main()
