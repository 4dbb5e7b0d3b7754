"""What a run folder holds: its stages, the metrics of its RL stages and its evaluations. Missing parts are no error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.evaluate.files import CHOICES, EPISODES, FIGURES, NEXT_ACTIONS, REASONING
from verl_act.evaluate.methods import JSON as METHODS
from verl_act.manifest import FILE_NAME, Manifest, read_manifest

RL_STAGES = ("critic", "action")
_ORDER = ("games", "expert", "alternatives", "pairs", "audit", "tasks", "critic", "action", "evaluate", "comparison")
_FIRST = ("train", "initial", "critic")
"""Which of several stages of one kind comes first."""
_ALWAYS = (
    *("alternatives", "audit", "tasks train", "tasks panel", "critic", "action"),
    *("evaluate initial", "evaluate critic", "evaluate action", "comparison"),
)
"""Stages of every chain; `games` is only in those that generate them, and splits differ."""
_BY_NAME = ("expert", "pairs", "tasks", "evaluate")
"""Kinds of which there are several, each with a folder of its own."""
_FOLDERS = {"evaluate": "evaluation"}
"""Kinds of stage whose folder has another name."""
_EPISODE_KEYS = ("task_id", "task_type", "split", "end", "success", "steps", "inadmissible_share", "malformed_share")
_ANSWER_KEYS = ("split", "inferable", "reply", "well_formed", "admissible", "right")
_REQUIRED = {
    EPISODES: (*_EPISODE_KEYS, "longest_failed_repeat"),
    NEXT_ACTIONS: ("state_id", *_ANSWER_KEYS),
    CHOICES: ("pair_id", *_ANSWER_KEYS, "margin", "named_a_candidate", "expert_position"),
    REASONING: ("item", "split", "right"),
}


class State(StrEnum):
    """How far a stage is."""

    DONE = "done"
    UNFINISHED = "unfinished"
    """An RL stage that is running, or was interrupted."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage as its manifests tell it.

    `made` is the manifest of its folder (counts, seed, settings); `mark` is the chain's own (the whole wall time).
    """

    name: str
    state: State
    made: Manifest | None = None
    mark: Manifest | None = None

    @property
    def manifests(self) -> list[Manifest]:
        return [manifest for manifest in (self.made, self.mark) if manifest is not None]

    @property
    def seconds(self) -> float | None:
        """Wall time: the chain's, which includes starting up, or else what the stage itself measured."""
        return next((manifest.seconds for manifest in reversed(self.manifests) if manifest.seconds is not None), None)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A folder that `evaluate` wrote: the single answers, and what was asked with which model."""

    folder: Path
    name: str
    model: str
    template: str
    sampling: dict[str, Any]
    manifest: Manifest | None
    episodes: list[dict[str, Any]]
    next_actions: list[dict[str, Any]]
    choices: list[dict[str, Any]]
    reasoning: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """A chain's output folder, or a single evaluation (then `stages` is empty)."""

    name: str
    folder: Path
    stages: list[StageRecord] = field(default_factory=list)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """RL stage -> one `{"step", "data"}` a step, in order."""
    evaluations: list[Evaluation] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    """What `compare-methods` wrote; empty for any other run. Metrics and evaluations are then its first seed's."""

    @property
    def manifests(self) -> list[Manifest]:
        found = [manifest for stage in self.stages for manifest in stage.manifests]
        return found or [evaluation.manifest for evaluation in self.evaluations if evaluation.manifest]


def read_runs(folders: Sequence[str | PathLike[str]]) -> list[Run]:
    """All of `folders`, each under a name of its own: its folder's, longer where two are called the same.

    Raises `DataError` where a folder holds nothing to report on, or a file in it is damaged.
    """
    paths = [Path(folder).absolute() for folder in folders]
    if repeated := next((path for number, path in enumerate(paths) if path in paths[:number]), None):
        raise DataError(f"{repeated}: is given twice; name each run once.")
    return [read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """One run. Raises `DataError` as `read_runs` does."""
    if (folder / FIGURES).is_file():
        return Run(name, folder, evaluations=[_read_evaluation(folder)])
    if (folder / "methods" / METHODS).is_file():
        return _read_methods(folder, name)
    stages = _stages(folder)
    metrics = {stage: lines for stage in RL_STAGES if (lines := _metrics(folder, stage))}
    folders = sorted(path.parent for path in (folder / "evaluation").glob(f"*/{FIGURES}"))
    evaluations = sorted(map(_read_evaluation, folders), key=lambda evaluation: _rank(f"evaluate {evaluation.name}"))
    if not (metrics or evaluations or any(stage.state is State.DONE for stage in stages)):
        raise DataError(
            f"{folder}: neither a folder that `chain` writes (no stage is done in it) nor one of `evaluate` "
            f"({FIGURES} is missing). Give the folder named with --out."
        )
    return Run(name, folder, stages, metrics, evaluations)


def _read_methods(folder: Path, name: str) -> Run:
    """A comparison of methods: all of its stages, and the evaluations and curves of its first seed."""
    path = folder / "methods" / METHODS
    try:
        comparison = json.loads(path.read_text())
        methods = comparison["methods"].values()
        seed = next(iter(next(iter(methods))["evaluations"]))
        folders = [folder / method["evaluations"][seed] for method in methods if seed in method["evaluations"]]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(f"{path}: is damaged ({error!r}). Run `methods` again.") from error
    marks = [mark for path in folder.glob(f".done/*/{FILE_NAME}") if (mark := read_manifest(path.parent)) is not None]
    marks.sort(key=lambda mark: mark.created)
    records = [StageRecord(mark.stage, State.DONE, mark=mark) for mark in marks if mark.stage != "report"]
    trained = sorted(path.parent.name for path in (folder / f"seed-{seed}").glob("*/metrics.jsonl"))
    metrics = {stage: lines for stage in trained if (lines := _metrics(folder / f"seed-{seed}", stage))}
    return Run(name, folder, records, metrics, list(map(_read_evaluation, folders)), comparison)


def _names(paths: Sequence[Path]) -> list[str]:
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _stages(folder: Path) -> list[StageRecord]:
    marks: dict[str, Manifest] = {}
    for path in sorted(folder.glob(f".done/*/{FILE_NAME}")):
        mark = read_manifest(path.parent)
        if mark is not None and mark.stage != "report":  # the page itself
            marks[mark.stage] = mark
    made: dict[str, Manifest] = {}
    for path in sorted([*folder.glob(f"*/{FILE_NAME}"), *folder.glob(f"*/*/{FILE_NAME}")]):
        name = _stage_name(path.parent.relative_to(folder))
        if name is not None and (manifest := read_manifest(path.parent)) is not None:
            made[name] = manifest
    work = {path.name.removesuffix(".work") for path in folder.glob("*.work") if path.is_dir()}
    splits = {name.split(" ", 1)[1] for name in {*marks, *made} if name.startswith("expert ")}
    wanted = {*_ALWAYS, *(f"{kind} {split}" for split in splits for kind in ("expert", "pairs"))}
    if not splits:
        wanted |= {"expert", "pairs"}
    found = []
    for name in sorted({*wanted, *marks, *made, *work & set(RL_STAGES)}, key=_rank):
        there = name in made or (name in marks and (name == "audit" or _folder(folder, name).is_dir()))
        state = State.DONE if there else State.UNFINISHED if name in work else State.MISSING
        found.append(StageRecord(name, state, made.get(name), marks.get(name) if there else None))
    return found


def _stage_name(relative: Path) -> str | None:
    """The chain's name of the stage that writes to this folder; None for a folder of no stage."""
    kinds = {folder: kind for kind, folder in _FOLDERS.items()}
    kind = kinds.get(relative.parts[0], relative.parts[0])
    fits = kind in _ORDER and (len(relative.parts) == 2) == (kind in _BY_NAME)
    return " ".join((kind, *relative.parts[1:])) if fits else None


def _folder(run: Path, stage: str) -> Path:
    kind, _, rest = stage.partition(" ")
    return run / _FOLDERS.get(kind, kind) / rest


def _rank(stage: str) -> tuple[int, int, str]:
    kind, _, rest = stage.partition(" ")
    order = _ORDER.index(kind) if kind in _ORDER else len(_ORDER)
    return order, _FIRST.index(rest) if rest in _FIRST else len(_FIRST), rest


def _metrics(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The metrics of all attempts, one entry a step; a step done again counts as done last."""
    finished = folder / stage / "metrics.jsonl"
    attempts = (folder / f"{stage}.work").glob("metrics-*.jsonl")
    files = [finished] if finished.is_file() else sorted(attempts, key=lambda path: int(path.stem.split("-")[1]))
    by_step: dict[int, dict[str, Any]] = {}
    for path in files:
        for number, line in _lines(path, unfinished=path != finished):
            if not isinstance(line.get("step"), int) or not isinstance(line.get("data"), dict):
                raise DataError(f"{path}, line {number}: has no step and data; it is not a metrics file of verl.")
            by_step[line["step"]] = line
    return [by_step[step] for step in sorted(by_step)]


def _read_evaluation(folder: Path) -> Evaluation:
    path = folder / FIGURES
    try:
        figures = json.loads(path.read_text())
        name, model, template, sampling = (figures[key] for key in ("name", "model", "template", "sampling"))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error!r}). Run the evaluation again.") from error
    manifest = read_manifest(folder)
    records = {}
    for file, required in _REQUIRED.items():
        records[file] = list(_records(folder / file, required))
        wanted = None if manifest is None else manifest.counts.get(Path(file).stem)
        if wanted is not None and wanted != len(records[file]):
            raise DataError(
                f"{folder / file}: holds {len(records[file])} records, but its manifest counts {wanted}. "
                "The file was cut short; run the evaluation again."
            )
    return Evaluation(folder, name, model, template, sampling, manifest, *(records[file] for file in _REQUIRED))


def _records(path: Path, required: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, record in _lines(path):
        if missing := [key for key in required if key not in record]:
            raise DataError(f"{path}, line {number}: {missing[0]!r} is missing. Run the evaluation again.")
        yield record


def _lines(path: Path, unfinished: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers; none where there is no file.

    An `unfinished` file may end in the middle of a line, which is then left out.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    last = lines.pop()
    for number, line in enumerate([*lines, *([last] if last and not unfinished else [])], 1):
        try:
            found = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {number}: is not JSON ({error}). Write the file again.") from error
        if not isinstance(found, dict):
            raise DataError(f"{path}, line {number}: is {type(found).__name__}, not an object. Write the file again.")
        yield number, found
