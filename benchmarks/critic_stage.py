"""What the critic stage teaches, seed by seed: choice accuracy over its steps, next actions before and after.

    python benchmarks/critic_stage.py runs/quickstart runs/methods

Reads finished runs; of a comparison of methods every seed (metrics and evaluations, all on held-out games; the models
trained with ACT alone and with ACT -> RL, where there are such, stand for those of a run's stages). Prints a table and
writes `benchmarks/results/critic_stage.json` and the curves, `critic_stage.svg`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import altair

from verl_act.evaluate.metric_registry import METRICS
from verl_act.evaluate.records import METRICS_FILE, read_metrics_file
from verl_act.run_folder import RunFolder, metrics_by_step

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
        file = next((folder / METRICS_FILE for folder in folders if (folder / METRICS_FILE).is_file()), None)
        if file is None:
            continue  # a comparison may do without it
        by_split = read_metrics_file(file)["metrics"]
        by_model[model] = {
            split: {METRICS[name].full_title: round(metrics[name]["value"], 4) for name in SHOWN}
            for split, metrics in by_split.items()
            if "choice" in metrics
        }
    return by_model


def draw(runs: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    rows = [
        {"run": run, "held out": split, "step": step, "accuracy": accuracy}
        for run, by_split in runs.items()
        for split, points in by_split.items()
        for step, accuracy in points.items()
    ]
    lines = (
        altair.Chart(altair.Data(values=rows), width=560, height=300)
        .mark_line(point=True)
        .encode(
            x=altair.X("step:Q", title="GRPO step"),
            y=altair.Y("accuracy:Q", title="better action chosen, held out", scale=altair.Scale(domain=[0.2, 1])),
            color="held out:N",
            detail="run:N",
        )
    )
    chance = altair.Chart(altair.Data(values=[{"chance": 0.5}])).mark_rule(strokeDash=[2, 2]).encode(y="chance:Q")
    (lines + chance).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    folders = [seed for run in parser.parse_args().runs for seed in RunFolder(run).seeds or [RunFolder(run)]]
    runs = {run.root.name if run.seed is None else f"{run.root.name}, seed {run.seed}": run for run in folders}
    measured = {name: {"validation": curves(run), "evaluation": evaluations(run)} for name, run in runs.items()}
    for name, figures in measured.items():
        print(f"\n{name}\n{'metric':52} {'split':13}", *(f"{model:>8}" for model in figures["evaluation"]))
        for split in figures["evaluation"]["initial"]:
            for title in figures["evaluation"]["initial"][split]:
                row = [models[split][title] for models in figures["evaluation"].values()]
                print(f"{title:52} {split:13}", *(f"{value:8.1%}" for value in row))
    (RESULTS / "critic_stage.json").write_text(json.dumps(measured, indent=2) + "\n")
    draw({name: figures["validation"] for name, figures in measured.items()}, RESULTS / "critic_stage.svg")


if __name__ == "__main__":
    main()
