"""The verdict on a smoke run, `verl-act dev smoke RUN_FOLDER`, after the recipe `alfworld/gpu_smoke`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.manifest import FILE_NAME as MANIFEST
from verl_act.manifest import process_versions, read_manifest
from verl_act.output_folder import replace_file
from verl_act.run_folder import RunFolder, TrainingFolder, metrics_by_step
from verl_act.settings.evaluation import SmokeSettings

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """The report of `smoke_report`, and the file that has it."""

    report: dict[str, Any]
    file: Path

    @property
    def errors(self) -> list[str]:
        problems: list[str] = self.report["problems"]
        return problems

    def table(self) -> str:
        """A line for each training stage and each problem, and the verdict."""
        stages = self.report["stages"].items()
        lines = [
            f"{'wrong' if stage['problems'] else 'ok   '} {name}: {stage['steps']} steps, {stage['seconds']} s"
            for name, stage in stages
        ]
        lines += [f"wrong {problem}" for problem in self.errors]
        verdict = "passed" if self.report["passed"] else "FAILED"
        return "\n".join([*lines, f"{verdict} on {self.report['devices']}; see {self.file}"])


def judge_smoke(settings: SmokeSettings, _: Path | None = None) -> Verdict:
    """Judge the run, and write `gpu_smoke.json` into its folder: devices, versions, metrics and problems."""
    verdict = Verdict(smoke_report(settings.run), settings.run / FILE_NAME)
    replace_file(verdict.file, json.dumps(verdict.report, indent=2) + "\n")
    return verdict


def _stage(stage: TrainingFolder) -> dict[str, Any]:
    by_step = metrics_by_step(stage.metrics_files)
    metrics: dict[str, Any] = {}
    for logged in by_step.values():
        metrics |= logged
    manifest = read_manifest(stage.path)
    planned = manifest.settings.get("overrides", {}).get("trainer.total_training_steps") if manifest else None
    return {
        "steps": max(by_step, default=0),
        "seconds": manifest.seconds if manifest else None,
        "metrics": {name: metrics[name] for name in _SHOWN if name in metrics},
        "problems": list(_problems(stage.model, by_step, metrics, planned or 1)),
    }


def _problems(model: Path, by_step: dict[int, dict[str, Any]], metrics: dict[str, Any], planned: int) -> Iterator[str]:
    """`metrics` are the last ones of `by_step`."""
    if (steps := max(by_step, default=0)) < planned:
        yield f"took {steps} of {planned} steps"
    for step, logged in by_step.items():
        for name, value in logged.items():
            if isinstance(value, float) and not math.isfinite(value):
                yield f"{name} is {value} at step {step}"
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
