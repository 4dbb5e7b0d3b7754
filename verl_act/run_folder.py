"""The layout of a run folder, which `verl-act run` writes and reports read. No other module knows a path in it.

- `games expert/<split> alternatives pairs/<split> tasks/train tasks/eval reflections`: data, shared by all seeds
- `rows-<kind> <stage> evaluation/<model> comparison`: a run of one seed
- `seed-<seed>/rows-<kind> seed-<seed>/<stages> seed-<seed>/evaluation/<method> methods`: a comparison of methods
- `report.html`
- `.done/plan.json`: all stages, finished or not; `.done/<stage>`: manifest and output files of a finished one
- `<training>.work`: a training stage in progress, with checkpoints, logs and metrics of its attempts
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from verl_act.errors import DataError
from verl_act.output_folder import locked, replace_file
from verl_act.text_files import read_json

TRAJECTORIES = "trajectories.parquet"
ALTERNATIVES = "alternatives.parquet"
PAIRS = "pairs.parquet"
TASKS = "tasks.parquet"
REFLECTIONS = "reflections.parquet"
SFT_ROWS = "sft.parquet"
DPO_ROWS = "dpo.parquet"
METHODS, METHODS_TABLE = "methods.json", "methods.md"
MODEL = "model"
SCORE, ENTROPY, RESPONSE_LENGTH = "critic/score/mean", "actor/entropy", "response_length/mean"
LOSS, DPO_MARGINS = "train/loss", "train/margins"
"""Keys of the trainers' metrics: verl's for RL, those of SFT and DPO."""
TRAINING_METRICS = "metrics.jsonl"
TRAINING_LOG = "log.txt"
COMPARISON = "comparison.json"
COMMAND, OUTPUTS, COMMAND_LOG = "command.txt", "outputs.json", "log.txt"
"""In the folder of a stage's record: its command, to run it by hand, its output files, warnings of other packages."""

_WORK = ".work"
_LAST = ("comparison", "methods", "report")
"""Stages that follow those of all seeds."""
_OTHERS = (
    *("games", "expert", "alternatives", "pairs", "tasks", "reflections", "rows", "audit"),
    *("evaluate", "evaluation", "comparison", "methods", "report", "plan", "seed"),
)
_STAGE_NAME = re.compile(rf"(?!(?:{'|'.join(_OTHERS)})(?:-|$))\w[\w.-]*(?<!\{_WORK})")
_SLUG = re.compile(r"[^a-z0-9]+")
_SEED = re.compile(r"seed-(-?\d+)")


def stage_name_problem(name: str) -> str | None:
    """Why no training stage can be called so; None if it can. Its folder and record must be no other stage's."""
    if _STAGE_NAME.fullmatch(name):
        return None
    return (
        f"has a stage {name!r}; use letters, digits, '.', '_' and '-', and another name than {', '.join(_OTHERS)}, "
        f"which are folders and stages of every run, alone or before a '-'; it must not end in {_WORK}."
    )


def slug(name: str) -> str:
    """The folder name of a method."""
    return _SLUG.sub("-", name.lower()).strip("-")


def stage_name(title: str, seed: int | None) -> str:
    """The name of a stage, unique in its run; `seed` is that of a comparison of methods."""
    return title if seed is None else f"seed {seed} {title}"


@dataclass(frozen=True, slots=True)
class NamedStage:
    """What a stage is called."""

    title: str
    seed: int | None = field(default=None, kw_only=True)
    """That of a comparison of methods; None for a stage that all seeds share, and in any other run."""

    @property
    def name(self) -> str:
        return stage_name(self.title, self.seed)


@dataclass(frozen=True, slots=True)
class PlannedStage(NamedStage):
    """A stage of the run, whether it has begun or not."""

    output: str
    """Relative to the run folder."""
    trains: bool = False
    shared: bool = False
    """Whether it makes data that all methods and seeds use."""


@dataclass(frozen=True, slots=True)
class TrainingFolder:
    """The output folder of a training stage, and the work folder next to it."""

    path: Path

    @property
    def title(self) -> str:
        """That of its stage."""
        return self.path.name

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.path / MODEL

    @property
    def work(self) -> Path:
        return self.path.with_name(f"{self.path.name}{_WORK}")

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @property
    def hydra(self) -> Path:
        """Where Hydra leaves the configuration that verl runs with."""
        return self.work / "hydra"

    @property
    def stamp(self) -> Path:
        """The settings and inputs that the work folder is of."""
        return self.work / "stage.json"

    def log(self, attempt: int) -> Path:
        return self.work / f"log-{attempt}.txt"

    def started(self, attempt: int) -> Path:
        """An empty file whose time is the start of the attempt."""
        return self.work / f"started-{attempt}"

    def metrics(self, attempt: int) -> Path:
        return self.work / f"metrics-{attempt}.jsonl"

    @property
    def attempts(self) -> int:
        return len(list(self.work.glob("started-*")))

    @property
    def attempts_metrics(self) -> list[Path]:
        """The metrics of all attempts so far, in order."""
        return sorted(self.work.glob("metrics-*.jsonl"), key=lambda path: int(path.stem.split("-")[1]))

    @property
    def metrics_files(self) -> list[Path]:
        """The metrics of the finished stage, or else of all attempts so far."""
        finished = self.path / TRAINING_METRICS
        return [finished] if finished.is_file() else self.attempts_metrics


def metrics_by_step(files: Iterable[Path]) -> dict[int, dict[str, Any]]:
    """Step -> the metrics that verl has logged, in order of the steps; of a repeated step, the last values.

    A line that a kill cut short is left out. Raises `DataError` for such a line of a finished stage.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for path in files:
        for line_number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                entry = json.loads(line)
                step, data = int(entry["step"]), dict(entry["data"])
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                if path.name == TRAINING_METRICS:
                    raise DataError(
                        f"{path}, line {line_number}: has no step and data ({error!r}). Run the stage again."
                    ) from error
                continue
            # Validation after a resume and after an SFT step is a separate line of the same step.
            by_step.setdefault(step, {}).update(data)
    return dict(sorted(by_step.items()))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths in the run folder `root`. `seed` is that of a comparison of methods; None for a run of one seed.

    Data are named by their file; the folder of the stage that made them is its parent.
    """

    root: Path
    seed: int | None = None

    @property
    def games(self) -> Path:
        return self.root / "games"

    def trajectories(self, split: str) -> Path:
        return self.root / "expert" / split / TRAJECTORIES

    @property
    def alternatives(self) -> Path:
        return self.root / "alternatives" / ALTERNATIVES

    def pairs(self, split: str) -> Path:
        return self.root / "pairs" / split / PAIRS

    def tasks(self, name: str) -> Path:
        """`train`, or `eval` for the eval set."""
        return self.root / "tasks" / name / TASKS

    @property
    def reflections(self) -> Path:
        return self.root / "reflections" / REFLECTIONS

    @property
    def _seed_folder(self) -> Path:
        return self.root if self.seed is None else self.root / f"seed-{self.seed}"

    def sft_rows(self, data: str) -> Path:
        return self._seed_folder / f"rows-{data}" / (DPO_ROWS if data == "dpo" else SFT_ROWS)

    def training(self, stages: Sequence[str]) -> TrainingFolder:
        """The model trained by `stages`, in order; in a run of one seed, each stage has one folder."""
        name = stages[-1] if self.seed is None else "+".join(stages)
        return TrainingFolder(self._seed_folder / name.replace(":", "-"))

    def evaluation(self, name: str) -> Path:
        return self._seed_folder / "evaluation" / slug(name)

    @property
    def evaluations(self) -> list[Path]:
        """Folders of evaluations, sorted by name, finished or not."""
        return sorted(path for path in (self._seed_folder / "evaluation").glob("*") if path.is_dir())

    @property
    def trainings(self) -> list[TrainingFolder]:
        """Training stages that have begun, sorted by name."""
        files = (*self._seed_folder.glob(f"*/{TRAINING_METRICS}"), *self._seed_folder.glob(f"*{_WORK}/*"))
        names = {file.parent.name.removesuffix(_WORK) for file in files}
        return [TrainingFolder(self._seed_folder / name) for name in sorted(names)]

    @property
    def comparison(self) -> Path:
        return self.root / "comparison"

    @property
    def methods(self) -> Path:
        return self.root / "methods"

    @property
    def methods_file(self) -> Path:
        return self.methods / METHODS

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def record(self, stage: str) -> Path:
        """Folder of the manifest of a finished stage, with `COMMAND` and `OUTPUTS`."""
        return self.root / ".done" / stage.replace(" ", "-")

    def lock(self, stage: str) -> Path:
        return self.root / ".done" / f"{stage.replace(' ', '-')}.lock"

    @property
    def records(self) -> list[Path]:
        """Folders of the manifests of all finished stages."""
        return sorted(path for path in (self.root / ".done").glob("*") if path.is_dir())

    @property
    def plan(self) -> list[PlannedStage]:
        """All stages that runs in this folder have had, in order. Raises `DataError` for a damaged file."""
        file = self.root / ".done" / "plan.json"
        if not file.is_file():
            return []
        try:
            return [PlannedStage(**entry) for entry in read_json(file)]
        except TypeError as error:
            raise DataError(f"{file}: is damaged ({error}). Delete it and run the recipe again.") from error

    def add_to_plan(self, stages: Sequence[PlannedStage]) -> None:
        """Record stages that will run. Several processes may do so."""
        with locked(self.root / ".done" / "plan.lock", lambda _: None):
            by_name = {stage.name: stage for stage in (*self.plan, *stages)}
            ordered = sorted(by_name.values(), key=_plan_order)
            text = json.dumps([asdict(stage) for stage in ordered], indent=1)
            replace_file(self.root / ".done" / "plan.json", f"{text}\n")

    @property
    def seeds(self) -> list[RunFolder]:
        """One for each seed of a comparison of methods, in ascending order."""
        named = (_SEED.fullmatch(path.name) for path in self.root.glob("seed-*") if path.is_dir())
        return [RunFolder(self.root, seed) for seed in sorted(int(name[1]) for name in named if name)]


def _plan_order(stage: PlannedStage) -> tuple[bool, int]:
    return stage.title in _LAST, -(2**63) if stage.seed is None else stage.seed
