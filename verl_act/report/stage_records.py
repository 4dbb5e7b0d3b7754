"""The planned stages of a run folder, with their progress and manifests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from verl_act.manifest import Manifest, read_manifest
from verl_act.run_folder import PlannedStage, RunFolder, TrainingFolder


class StageState(StrEnum):
    """The progress of a stage."""

    DONE = "done"
    UNFINISHED = "unfinished"
    """A training stage that is running or was interrupted."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage with its manifests: `made` in its output (counts, seed, settings), `mark` of the run (wall time)."""

    name: str
    title: str
    """The name without the seed."""
    seed: int | None
    """That of a comparison's per-seed stage; None for any other stage."""
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


def read_stages(folder: RunFolder) -> list[StageRecord]:
    """The planned stages in order, without the report itself. Raises `DataError` for a damaged file."""
    planned = ((stage, folder.root / stage.output) for stage in folder.plan)
    return [_read_stage(folder, stage, output) for stage, output in planned if output != folder.report]


def _read_stage(folder: RunFolder, stage: PlannedStage, output: Path) -> StageRecord:
    made, mark = read_manifest(output), read_manifest(folder.record(stage.name)) if output.exists() else None
    unfinished = stage.trains and TrainingFolder(output).work.is_dir()
    state = StageState.DONE if made or mark else StageState.UNFINISHED if unfinished else StageState.MISSING
    return StageRecord(stage.name, stage.title, stage.seed, output, stage.trains, state, made, mark)
