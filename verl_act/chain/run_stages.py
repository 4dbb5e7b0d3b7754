"""Run the stages of a recipe: skip those that are up to date, and resume after a kill."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from verl_act.chain.outputs import damaged_outputs, discard_damaged, record_outputs
from verl_act.chain.stages import CommandStage, Stage, TrainingStage
from verl_act.chain.train import discard_work, train
from verl_act.errors import EngineError
from verl_act.manifest import make_manifest, own_manifest, up_to_date, write_manifest
from verl_act.names import one_line
from verl_act.output_folder import finish_replacement, locked, replace_file
from verl_act.process import run_to_its_end
from verl_act.progress import LOG_FILE
from verl_act.run_folder import COMMAND, COMMAND_LOG, MODEL, PlannedStage, RunFolder

console = Console(highlight=False, markup=False, emoji=False)  # titles and paths are not ours


def run_stages(planned: Sequence[Stage], out: RunFolder) -> None:
    """Run every stage that is not up to date; each has a manifest in `out.record(stage)` when it is.

    Several processes may share `out`: one runs a stage, the others wait and then skip it.
    Raises `EngineError` naming the stage if one fails; finished stages are kept.
    """
    out.root.mkdir(parents=True, exist_ok=True)
    out.add_to_plan(
        [
            PlannedStage(
                title=stage.title,
                output=os.path.relpath(stage.output, out.root),
                trains=isinstance(stage, TrainingStage),
                seed=stage.seed,
                shared=isinstance(stage, CommandStage) and stage.shared,
            )
            for stage in planned
        ]
    )
    for index, stage in enumerate(planned, 1):
        title = f"[{index}/{len(planned)}] {one_line(stage.name)}"
        with alone(out, stage.name, title):
            if not _is_up_to_date(stage, planned, out):
                _run_stage(stage, out, title)
                continue
            console.print(f"{title}: up to date")
            if isinstance(stage, TrainingStage):
                discard_work(stage)  # an earlier process may have been killed before it had deleted everything


@contextmanager
def alone(out: RunFolder, name: str, title: str) -> Iterator[None]:
    """Hold the lock of the stage `name`, which the kernel releases when this process dies."""

    def wait(holder: str) -> None:
        console.print(f"{title}: waiting, {holder} is running it", markup=False)

    with locked(out.lock(name), wait):
        yield


def is_done(stage: Stage, out: RunFolder, as_recorded: Collection[Path] = ()) -> bool:
    """Whether the stage was run with the current settings and inputs, and its output exists.

    Inputs in `as_recorded` are not read: the hashes recorded by that run are used. The files of a training stage's
    output are not checked either (see `_is_up_to_date`).
    """
    finish_replacement(stage.output)
    recorded = own_manifest(out.record(stage.name))
    checked = [path for path in stage.inputs if path not in as_recorded]
    if recorded is None or not stage.output.exists():
        return False
    if isinstance(stage, CommandStage) and damaged_outputs(stage, out.record(stage.name)):
        return False
    if not all(path.exists() for path in checked):
        return False
    expected = make_manifest(stage.name, settings=stage.recorded(), inputs=list(checked))
    recorded_inputs = {str(path): recorded.inputs.get(str(path), "") for path in stage.inputs if path in as_recorded}
    return up_to_date(out.record(stage.name), replace(expected, inputs=expected.inputs | recorded_inputs))


def _is_up_to_date(stage: Stage, planned: Sequence[Stage], out: RunFolder) -> bool:
    """Whether the stage can be skipped.

    A trained model may have been deleted to free space; it is needed only if a stage that starts from it must run.
    """
    trained = [other for other in planned if isinstance(other, TrainingStage)]
    deleted = {other.folder.model for other in trained if not _has_model(other, out)}
    if not is_done(stage, out, deleted):
        return False
    if not isinstance(stage, TrainingStage) or stage.folder.model not in deleted:
        return True
    return all(_is_up_to_date(later, planned, out) for later in planned if stage.folder.model in later.inputs)


def _has_model(stage: TrainingStage, out: RunFolder) -> bool:
    """Whether the exported model of a training stage exists and is unchanged."""
    damaged = damaged_outputs(stage, out.record(stage.name))
    return stage.folder.model.exists() and not any(name.startswith(f"{MODEL}/") for name in damaged)


def _run_stage(stage: Stage, out: RunFolder, title: str) -> None:
    """Run the stage and record that it is done."""
    console.rule(title, align="left")
    record = out.record(stage.name)
    if isinstance(stage, TrainingStage) and stage.output.exists() and not _has_model(stage, out):
        console.print("The model was deleted but is needed: training again, and then the stages that start from it.")
    elif damaged := damaged_outputs(stage, record):
        name, *others = damaged
        more = f" (and {len(others)} more)" if others else ""
        console.print(f"output file {name}{more} is missing or has changed: running the stage again.", markup=False)
    discard_damaged(stage, record)
    replace_file(record / COMMAND, f"{shlex.join(stage.argv())}\n")
    started = time.monotonic()
    # Inputs are hashed first: one that changes during the run then makes the stage out of date.
    manifest = make_manifest(stage.name, settings=stage.recorded(), inputs=list(stage.inputs))
    if isinstance(stage, TrainingStage):
        seconds = train(stage, manifest)
    else:
        run_command(stage, record / COMMAND_LOG)
        seconds = time.monotonic() - started
    manifest = replace(manifest, seconds=round(seconds, 1))
    record_outputs(stage, record)
    write_manifest(record, manifest)
    if isinstance(stage, TrainingStage):
        discard_work(stage)
    console.print(f"{title}: done in {seconds:.0f} s, {os.path.relpath(stage.output, out.root)}", soft_wrap=True)


def run_command(stage: CommandStage, log: Path) -> None:
    """Run the stage in a process; warnings of other packages go to `log`. Raises `EngineError` if it fails."""
    log.unlink(missing_ok=True)
    environment = {**os.environ, LOG_FILE: str(log)}
    if status := run_to_its_end(stage.argv(), environment):
        raise EngineError(
            f"stage {stage.name!r} failed with status {status}; see its messages above. Fix the cause "
            "and run the same command again: finished stages are skipped."
        )
