"""What the critic stage teaches, seed by seed: choice accuracy over its steps, next actions before and after.

    python benchmarks/critic_stage.py runs/quickstart runs/methods

Reads finished runs; of a comparison of methods every seed (metrics and evaluations, all on held-out games; the models
trained with ACT alone and with ACT -> RL stand for those of a run's stages). Prints a table and writes
`benchmarks/results/critic_stage.json` and the curves, `critic_stage.svg`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import matplotlib

from verl_act.evaluate.files import METRICS_FILE
from verl_act.evaluate.metric_registry import METRICS
from verl_act.evaluate.records import read_metrics_file
from verl_act.run_folder import RunFolder, metrics_by_step

matplotlib.use("svg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
VALIDATION = re.compile(r"val-core/act/\w+/choice/([\w/]+)/acc/mean@1")
SHOWN = (
    *("choice_inferable", "choice", "choice_malformed", "choice_named"),
    *("next_action_inferable", "next_action", "success"),
)
MODELS = {"initial": "prompting", "critic": "act", "action": "act-rl"}
"""Names of evaluations in a chain, and in a comparison of methods."""


def curves(run: RunFolder) -> dict[str, dict[int, float]]:
    """Split -> step -> accuracy of the validation's choices."""
    by_split: dict[str, dict[int, float]] = {}
    for step, metrics in metrics_by_step(run.training(["critic"]).metrics_files).items():
        for name, value in metrics.items():
            if match := VALIDATION.fullmatch(name):
                by_split.setdefault(match[1], {})[step] = round(value, 4)
    return by_split


def evaluations(run: RunFolder) -> dict[str, dict[str, dict[str, float]]]:
    """Model -> split -> figure."""
    by_model: dict[str, dict[str, dict[str, float]]] = {}
    for model, method in MODELS.items():
        seeds = [run, *RunFolder(run.root).seeds]  # a greedy initial model is evaluated with one seed only
        folders = [seed.evaluation(name) for seed in seeds for name in (model, method)]
        file = next(folder / METRICS_FILE for folder in folders if (folder / METRICS_FILE).is_file())
        by_split = read_metrics_file(file)["metrics"]
        by_model[model] = {
            split: {METRICS[name].full_title: round(metrics[name]["value"], 4) for name in SHOWN}
            for split, metrics in by_split.items()
            if "choice" in metrics
        }
    return by_model


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
    folders = [seed for run in parser.parse_args().runs for seed in RunFolder(run).seeds or [RunFolder(run)]]
    runs = {run.root.name if run.seed is None else f"{run.root.name}, seed {run.seed}": run for run in folders}
    measured = {name: {"validation": curves(run), "evaluation": evaluations(run)} for name, run in runs.items()}
    for name, figures in measured.items():
        print(f"\n{name}\n{'metric':52} {'split':13} {'initial':>8} {'critic':>8} {'action':>8}")
        for split in figures["evaluation"]["initial"]:
            for title in figures["evaluation"]["initial"][split]:
                row = [figures["evaluation"][model][split][title] for model in MODELS]
                print(f"{title:52} {split:13} {row[0]:8.1%} {row[1]:8.1%} {row[2]:8.1%}")
    (RESULTS / "critic_stage.json").write_text(json.dumps(measured, indent=2) + "\n")
    draw({name: figures["validation"] for name, figures in measured.items()}, RESULTS / "critic_stage.svg")


if __name__ == "__main__":
    main()
