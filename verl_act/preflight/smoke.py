"""The verdict on a smoke run: `python -m verl_act.preflight.smoke RUN_FOLDER`, after the recipe `alfworld/gpu_smoke`.

Prints one line for each training stage, and writes `gpu_smoke.json` into the folder: devices, versions, metrics and
problems. Exits with 1 if something is wrong.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.manifest import FILE_NAME as MANIFEST
from verl_act.manifest import process_versions, read_manifest
from verl_act.output_folder import replace_file
from verl_act.run_folder import RunFolder, TrainingFolder, metrics_by_step

FILE_NAME = "gpu_smoke.json"
MAX_PROBABILITY_DIFFERENCE = 0.05
"""Largest mean difference of a token's probability between engine and trainer. More means that they do not compute with
the same weights. The bound is of our choice: 16-bit kernels differ, by much less."""
_PROBABILITY_DIFFERENCE = "training/rollout_probs_diff_mean"
_SHOWN = (
    *("actor/grad_norm", "train/grad_norm", "train/loss", "critic/score/mean", "response_length/mean"),
    *(_PROBABILITY_DIFFERENCE, "perf/time_per_step", "perf/throughput", "perf/max_memory_allocated_gb"),
)


def smoke_report(folder: Path) -> dict[str, Any]:
    """What a run in `folder` shows: per training stage its steps, last metrics and problems.

    Raises `DataError` if the folder holds no finished training stage, or a damaged file.
    """
    run = RunFolder(folder)
    seeds = [run, *run.seeds]
    finished = [stage for seed in seeds for stage in seed.trainings if (stage.path / MANIFEST).is_file()]
    stages = {str(stage.path.relative_to(folder)): _stage(stage) for stage in finished}
    if not stages:
        raise DataError(f"{folder}: holds no finished training stage; run alfworld/gpu_smoke.")
    evaluated = any((path / MANIFEST).is_file() for seed in seeds for path in seed.evaluations)
    missing = [] if evaluated else ["no model was evaluated"]
    missing += [
        f"{stage.name}: not finished" for stage in run.plan if not (run.record(stage.name) / MANIFEST).is_file()
    ]
    problems = [f"{name}: {problem}" for name, stage in stages.items() for problem in stage["problems"]] + missing
    return {
        "passed": not problems,
        "problems": problems,
        "devices": _devices(),
        "packages": dict(process_versions()),
        "stages": stages,
    }


def main(folder: Path) -> int:
    """Print the verdict on the run in `folder` and write it there. Returns the exit status."""
    report = smoke_report(folder)
    for name, stage in report["stages"].items():
        print(f"{'wrong' if stage['problems'] else 'ok':5} {name}: {stage['steps']} steps, {stage['seconds']} s")
    for problem in report["problems"]:
        print(f"wrong {problem}")
    replace_file(folder / FILE_NAME, json.dumps(report, indent=2) + "\n")
    print(f"{'passed' if report['passed'] else 'FAILED'} on {report['devices']}; see {folder / FILE_NAME}")
    return int(not report["passed"])


def _stage(stage: TrainingFolder) -> dict[str, Any]:
    by_step = metrics_by_step(stage.metrics_files)
    metrics: dict[str, Any] = {}
    for logged in by_step.values():
        metrics |= logged
    steps = max(by_step, default=0)
    manifest = read_manifest(stage.path)
    return {
        "steps": steps,
        "seconds": manifest.seconds if manifest else None,
        "metrics": {name: metrics[name] for name in _SHOWN if name in metrics},
        "problems": list(_problems(stage.model, metrics, steps)),
    }


def _problems(model: Path, metrics: dict[str, Any], steps: int) -> Iterator[str]:
    if steps < 1:
        yield "took no step"
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{name} is {value}"
    difference = metrics.get(_PROBABILITY_DIFFERENCE)
    if difference is None and "actor/grad_norm" in metrics:  # of an RL stage
        yield f"{_PROBABILITY_DIFFERENCE} was not measured, for which the recipe alfworld/gpu_smoke has the settings"
    elif difference is not None and difference > MAX_PROBABILITY_DIFFERENCE:
        yield f"engine and trainer differ by {difference:.3f} in the mean probability of a token: other weights?"
    if not (model / "config.json").is_file() or not list(model.glob("*.safetensors")):
        yield "left no model"


def _devices() -> str:
    import torch

    if not torch.accelerator.is_available():
        return "cpu"
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else torch.accelerator.current_accelerator()
    return f"{torch.accelerator.device_count()} x {name}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m verl_act.preflight.smoke RUN_FOLDER")
    try:
        sys.exit(main(Path(sys.argv[1])))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
