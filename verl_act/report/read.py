"""Read a run folder: its stages, training metrics and evaluations. Missing stages are not an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.evaluate.records import METRICS_FILE, read_metrics_file, read_records
from verl_act.manifest import Manifest, read_manifest
from verl_act.names import unique_names
from verl_act.run_folder import NamedStage, PlannedStage, RunFolder, TrainingFolder, metrics_by_step
from verl_act.text_files import read_json

Steps = dict[int, dict[str, Any]]
"""Step of a training -> its metrics, in order."""


class StageState(StrEnum):
    """The progress of a stage."""

    DONE = "done"
    UNFINISHED = "unfinished"
    """A training stage that is running or was interrupted."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class StageRecord(NamedStage):
    """One stage with its manifests: `made` in its output (counts, seed, settings), `mark` of the run (wall time)."""

    output: Path
    trains: bool
    state: StageState
    made: Manifest | None
    mark: Manifest | None

    @property
    def seconds(self) -> float | None:
        """Wall time: the run's, which includes start-up, or else the stage's."""
        times = (manifest.seconds for manifest in (self.mark, self.made) if manifest)
        return next((seconds for seconds in times if seconds is not None), None)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A folder that `eval run` wrote: its records and its settings."""

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
    """A run folder, with methods or without, or a single evaluation (then `stages` is empty)."""

    name: str
    folder: Path
    stages: list[StageRecord] = field(default_factory=list)
    metrics: dict[str, Steps] = field(default_factory=dict)
    """Name of a training stage -> its steps, if it has logged any."""
    evaluations: list[Evaluation] = field(default_factory=list)
    """One for each model; that of a method is from its first seed."""
    comparison: dict[str, Any] = field(default_factory=dict)
    """The file of `dev methods-table`, if any."""

    @property
    def seeds(self) -> list[int]:
        """The seeds of a comparison; empty for any other run."""
        if methods := self.comparison.get("methods"):
            return sorted({int(seed) for method in methods.values() for seed in method["evaluations"]})
        return sorted({seed for stage in self.stages if (seed := stage.seed) is not None})

    @property
    def manifests(self) -> list[Manifest]:
        of_stages = [manifest for stage in self.stages for manifest in (stage.made, stage.mark) if manifest]
        return of_stages or [evaluation.manifest for evaluation in self.evaluations if evaluation.manifest]

    @property
    def trained(self) -> dict[str, list[Steps]]:
        """Training stage without its seed -> the steps of each seed that has logged any."""
        by_title: dict[str, list[Steps]] = {}
        for stage in self.stages:
            if stage.name in self.metrics:
                by_title.setdefault(stage.title, []).append(self.metrics[stage.name])
        return by_title


def read_runs(folders: Sequence[str | PathLike[str]]) -> list[Run]:
    """All of `folders`. Each run is named after its folder, with parent folders if two names are equal.

    Raises `DataError` if a folder has nothing to report on or a file in it is damaged.
    """
    paths = [Path(folder).absolute() for folder in folders]
    if repeated := next((path for index, path in enumerate(paths) if path in paths[:index]), None):
        raise DataError(f"{repeated}: is given twice; name each run once.")
    return [read_run(path, name) for path, name in zip(paths, unique_names(paths), strict=True)]


def read_run(path: Path, name: str) -> Run:
    """One run. Raises `DataError` like `read_runs`."""
    if (path / METRICS_FILE).is_file():
        return Run(name, path, evaluations=[_read_evaluation(path)])
    folder = RunFolder(path)
    planned = [(stage, path / stage.output) for stage in folder.plan]
    stages = [_read_stage(folder, stage, output) for stage, output in planned if output != folder.report]
    if not stages:
        raise DataError(
            f"{path}: neither a folder that `run` writes (it has no plan) nor one of `eval run` ({METRICS_FILE} is "
            "missing). Give the folder named with --out."
        )
    trained = {stage.name: TrainingFolder(stage.output) for stage in stages if stage.trains}
    logged = {name: metrics_by_step(training.metrics_files) for name, training in trained.items()}
    metrics = {name: steps for name, steps in logged.items() if steps}
    comparison = read_json(folder.methods_file) if folder.methods_file.is_file() else {}
    evaluations = _compared(folder, comparison) if comparison else _finished(folder, stages)
    return Run(name, path, stages, metrics, list(map(_read_evaluation, evaluations)), comparison)


def _read_stage(folder: RunFolder, stage: PlannedStage, output: Path) -> StageRecord:
    made, mark = read_manifest(output), read_manifest(folder.record(stage.name)) if output.exists() else None
    unfinished = stage.trains and TrainingFolder(output).work.is_dir()
    state = StageState.DONE if made or mark else StageState.UNFINISHED if unfinished else StageState.MISSING
    return StageRecord(stage.title, output, stage.trains, state, made, mark, seed=stage.seed)


def _compared(folder: RunFolder, comparison: dict[str, Any]) -> list[Path]:
    """The evaluation of every method with its first seed."""
    try:
        return [folder.root / next(iter(method["evaluations"].values())) for method in comparison["methods"].values()]
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(f"{folder.methods_file}: is damaged ({error!r}). Run the recipe again.") from error


def _finished(folder: RunFolder, stages: Sequence[StageRecord]) -> list[Path]:
    """The finished evaluation of every model with its first seed; those that no stage made come last."""
    by_model: dict[str, Path] = {}
    for seed in folder.seeds or [folder]:
        for path in seed.evaluations:
            if (path / METRICS_FILE).is_file():
                by_model.setdefault(path.name, path)
    order = {stage.output: index for index, stage in enumerate(stages)}
    return sorted(by_model.values(), key=lambda path: order.get(path, len(order)))


def _read_evaluation(folder: Path) -> Evaluation:
    path = folder / METRICS_FILE
    if not path.is_file():
        raise DataError(f"{folder}: holds no evaluation ({METRICS_FILE} is missing); run the recipe again.")
    metrics = read_metrics_file(path)
    name, model, template, sampling = (metrics[key] for key in ("name", "model", "template", "sampling"))
    return Evaluation(folder, name, model, template, sampling, read_manifest(folder), read_records(folder))
