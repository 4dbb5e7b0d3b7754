"""What the critic stage teaches, seed by seed: choice accuracy over its steps, next actions before and after.

    python benchmarks/critic_stage.py runs/quickstart runs/methods/seed-0 runs/methods/seed-1

Reads finished chains, or the seeds of a comparison of methods (their metrics and evaluations, all on held-out games;
what was trained with ACT alone and with RL + ACT stands in the place of a chain's stages), prints a table and writes
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
METRICS = {
    "choice, inferable": ("choice", "right_inferable"),
    "choice, all": ("choice", "right"),
    "choice, well-formed": ("choice", "well_formed"),
    "choice, names a candidate": ("choice", "named_a_candidate"),
    "next action, inferable": ("next_action", "right_inferable"),
    "next action, all": ("next_action", "right"),
    "episodes won": ("episodes", "success"),
}


MODELS = {"initial": "prompting", "critic": "act", "action": "rl-act"}
"""Names of evaluations in a chain, and in a comparison of methods."""


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
    for model, method in MODELS.items():
        places = [run / "evaluation" / model, run / "evaluation" / method]
        places += run.parent.glob(f"*/evaluation/{method}")  # a greedy initial model is asked for one seed only
        file = next(folder / "metrics.json" for folder in places if (folder / "metrics.json").is_file())
        figures: dict[str, Any] = json.loads(file.read_text())
        splits = sorted(figures["choice"])
        found[model] = {
            split: {
                title: round(figures[section][split][name]["share"], 4) for title, (section, name) in METRICS.items()
            }
            for split in splits
        }
    return found


def draw(runs: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    splits = sorted({split for found in runs.values() for split in found})
    for color, split in enumerate(splits):
        for number, found in enumerate(runs.values()):
            points = found.get(split, {})
            label = "" if number else split  # one entry of the legend for all runs
            axes.plot(list(points), list(points.values()), marker=".", color=f"C{color}", label=label)
    axes.axhline(0.5, color="grey", linestyle=":", label="chance")
    axes.set(xlabel="GRPO step", ylabel="choice accuracy, held out", ylim=(0.2, 1.0))
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
            for title in METRICS:
                row = [figures["evaluation"][model][split][title] for model in MODELS]
                print(f"{title:28} {split:13} {row[0]:8.1%} {row[1]:8.1%} {row[2]:8.1%}")
    (RESULTS / "critic_stage.json").write_text(json.dumps(measured, indent=2) + "\n")
    draw({name: figures["validation"] for name, figures in measured.items()}, RESULTS / "critic_stage.svg")


if __name__ == "__main__":
    main()
