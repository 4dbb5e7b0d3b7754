"""Read a run folder: its stages, training metrics and evaluations. Missing stages are not an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.evaluate.files import METRICS_FILE
from verl_act.evaluate.methods import JSON as METHODS
from verl_act.evaluate.records import json_lines, read_metrics_file, read_records
from verl_act.manifest import Manifest, read_manifest
from verl_act.report.stages import RL_STAGES, StageRecord, StageState, rank, read_stages, seed_folders
from verl_act.text_files import read_json


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A folder that `evaluate` wrote: its records and its settings."""

    folder: Path
    name: str
    model: str
    template: str
    sampling: dict[str, Any]
    manifest: Manifest | None
    records: dict[str, list[dict[str, Any]]]
    """File name -> records."""


@dataclass(frozen=True, slots=True)
class Run:
    """The output folder of a chain or of a comparison, or a single evaluation (then `stages` is empty)."""

    name: str
    folder: Path
    stages: list[StageRecord] = field(default_factory=list)
    metrics: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)
    """Training stage -> for each seed with metrics: `{"step", "data"}` per step, in order. A chain has one seed."""
    evaluations: list[Evaluation] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    """The file of `compare-methods`, if any. `evaluations` of a comparison are those of its first seed."""
    failed_episodes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Method -> (episodes that ended in an environment error, all episodes), over all seeds."""

    @property
    def seeds(self) -> list[int]:
        """The seeds of a comparison; empty for any other run."""
        if methods := self.comparison.get("methods"):
            return sorted({int(seed) for method in methods.values() for seed in method["evaluations"]})
        return sorted({seed for stage in self.stages if (seed := stage.seed) is not None})

    @property
    def manifests(self) -> list[Manifest]:
        of_stages = [manifest for stage in self.stages for manifest in stage.manifests]
        return of_stages or [evaluation.manifest for evaluation in self.evaluations if evaluation.manifest]


def read_runs(folders: Sequence[str | PathLike[str]]) -> list[Run]:
    """All of `folders`. Each run is named after its folder, with parent folders if two names are equal.

    Raises `DataError` if a folder has nothing to report on or a file in it is damaged.
    """
    paths = [Path(folder).absolute() for folder in folders]
    if repeated := next((path for index, path in enumerate(paths) if path in paths[:index]), None):
        raise DataError(f"{repeated}: is given twice; name each run once.")
    return [read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """One run. Raises `DataError` like `read_runs`."""
    if (folder / METRICS_FILE).is_file():
        return Run(name, folder, evaluations=[_read_evaluation(folder)])
    if (folder / "methods" / METHODS).is_file() or seed_folders(folder):
        return _read_methods(folder, name)
    stages = read_stages(folder)
    metrics = {stage: [lines] for stage in RL_STAGES if (lines := _metrics(folder, stage))}
    evaluations = [_read_evaluation(path.parent) for path in folder.glob(f"evaluation/*/{METRICS_FILE}")]
    evaluations.sort(key=lambda evaluation: rank(f"evaluate {evaluation.name}"))
    if not (metrics or evaluations or any(stage.state is StageState.DONE for stage in stages)):
        raise DataError(
            f"{folder}: neither a folder that `chain` writes (no stage is done in it) nor one of `evaluate` "
            f"({METRICS_FILE} is missing). Give the folder named with --out."
        )
    return Run(name, folder, stages, metrics, evaluations)


def _read_methods(folder: Path, name: str) -> Run:
    """A comparison of methods, finished or not: stages, metrics of all seeds, evaluations of the first seed."""
    path = folder / "methods" / METHODS
    seeds = seed_folders(folder)
    first = next(iter(seeds), folder)
    folders = sorted(file.parent for file in first.glob(f"evaluation/*/{METRICS_FILE}"))
    comparison: dict[str, Any] = {}
    if path.is_file():
        try:
            comparison = read_json(path)
            methods = comparison["methods"].values()
            seed = next(iter(next(iter(methods))["evaluations"]))
            folders = [folder / method["evaluations"][seed] for method in methods if seed in method["evaluations"]]
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise DataError(f"{path}: is damaged ({error!r}). Run `methods` again.") from error
    logged = [
        path for pattern in ("*/metrics.jsonl", "*.work/metrics-*.jsonl") for path in folder.glob(f"seed-*/{pattern}")
    ]
    trained = sorted({path.parent.name.removesuffix(".work") for path in logged})
    by_stage = {stage: [lines for seed in seeds if (lines := _metrics(seed, stage))] for stage in trained}
    metrics = {stage: several for stage, several in by_stage.items() if several}
    evaluations = list(map(_read_evaluation, folders))
    stages = read_stages(folder, comparison=True)
    return Run(name, folder, stages, metrics, evaluations, comparison, _failed_episodes(folder, comparison))


def _failed_episodes(folder: Path, comparison: dict[str, Any]) -> dict[str, tuple[int, int]]:
    failed = {}
    for name, method in comparison.get("methods", {}).items():
        manifests = [read_manifest(folder / path) for path in method["evaluations"].values()]
        counts = [manifest.counts for manifest in manifests if manifest]
        failed[name] = tuple(sum(entry.get(key, 0) for entry in counts) for key in ("episode_errors", "episodes"))
    return failed


def _names(paths: Sequence[Path]) -> list[str]:
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _metrics(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The metrics of all attempts, one entry per step; for a repeated step, the latest values."""
    finished = folder / stage / "metrics.jsonl"
    attempts = (folder / f"{stage}.work").glob("metrics-*.jsonl")
    files = [finished] if finished.is_file() else sorted(attempts, key=lambda path: int(path.stem.split("-")[1]))
    by_step: dict[int, dict[str, Any]] = {}
    for path in files:
        for line_number, line in json_lines(path, unfinished=path != finished):
            if not isinstance(line.get("step"), int) or not isinstance(line.get("data"), dict):
                raise DataError(f"{path}, line {line_number}: has no step and data; it is not a metrics file of verl.")
            by_step.setdefault(line["step"], {}).update(line["data"])
    return [{"step": step, "data": by_step[step]} for step in sorted(by_step)]


def _read_evaluation(folder: Path) -> Evaluation:
    path = folder / METRICS_FILE
    if not path.is_file():
        raise DataError(f"{folder}: holds no evaluation ({METRICS_FILE} is missing); run the chain or `methods` again.")
    metrics = read_metrics_file(path)
    name, model, template, sampling = (metrics[key] for key in ("name", "model", "template", "sampling"))
    return Evaluation(folder, name, model, template, sampling, read_manifest(folder), read_records(folder))
