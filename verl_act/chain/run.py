"""Run the stages of a recipe: skip what is up to date, go on where a killed chain stopped."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from verl_act.chain.outputs import damaged_outputs, discard_damaged, record_outputs
from verl_act.chain.recipe import Recipe
from verl_act.chain.stages import Stage, stages
from verl_act.chain.train import discard_work, train
from verl_act.errors import EngineError
from verl_act.manifest import make_manifest, own_manifest, up_to_date, write_manifest
from verl_act.names import one_line
from verl_act.output_folder import finish_replacement, locked
from verl_act.process import dies_with_parent

console = Console(highlight=False, markup=False, emoji=False)  # titles and paths are not ours


def run_chain(recipe: Recipe, out: Path) -> None:
    """Run all stages of `recipe` that are not up to date, as `run_stages` does."""
    run_stages(stages(recipe, out), out)


def run_stages(planned: Sequence[Stage], out: Path) -> None:
    """Run every stage that is not up to date; each writes `out/.done/<stage>/manifest.json` when it is.

    Several processes may share `out`: one of them runs a stage, the others wait and then find it up to date.
    Raises `EngineError` naming the stage, its command and its log where a stage fails; what was finished stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(planned, 1):
        title = f"[{number}/{len(planned)}] {one_line(stage.name)}"
        with alone(out, stage.name, title):
            if not _stands(stage, planned, out):
                _run_stage(stage, out, title)
                continue
            console.print(f"{title}: up to date")
            if stage.trains:
                discard_work(stage)  # killed while it was doing so


@contextmanager
def alone(out: Path, name: str, title: str) -> Iterator[None]:
    """Hold `out/.done/<name>.lock`, as one process at a time can. The kernel lets go of it when the process dies."""

    def wait(holder: str) -> None:
        console.print(f"{title}: waits for {holder}, which is running it", markup=False)

    with locked(out / ".done" / f"{name.replace(' ', '-')}.lock", wait):
        yield


def is_done(stage: Stage, out: Path, as_recorded: Collection[Path] = ()) -> bool:
    """Whether the stage has been run as it would be now, and its output is there.

    Of the inputs `as_recorded` it counts what they were then; they are not looked at. Nor is the output of a
    training stage: see `_stands`.
    """
    finish_replacement(stage.output)
    found = own_manifest(_mark(out, stage))
    looked_at = [path for path in stage.inputs if path not in as_recorded]
    if found is None or found.settings != _settings(stage) or not stage.output.exists():
        return False
    if not stage.trains and damaged_outputs(stage, _mark(out, stage)):
        return False
    if not all(path.exists() for path in looked_at):
        return False
    wanted = make_manifest(stage.name, settings=_settings(stage), inputs=list(looked_at))
    recorded = {str(path): found.inputs.get(str(path), "") for path in stage.inputs if path in as_recorded}
    return up_to_date(_mark(out, stage), replace(wanted, inputs=wanted.inputs | recorded))


def _stands(stage: Stage, planned: Sequence[Stage], out: Path) -> bool:
    """Whether the stage need not be run. A model may have been deleted to free space: it is missed only where a stage
    that begins with it has yet to be run.
    """
    deleted = {other.output / "model" for other in planned if other.trains and not _has_model(other, out)}
    if not is_done(stage, out, deleted):
        return False
    model = stage.output / "model"
    return model not in deleted or all(_stands(later, planned, out) for later in planned if model in later.inputs)


def _has_model(stage: Stage, out: Path) -> bool:
    """Whether the model of a training stage is there as it was exported."""
    damaged = damaged_outputs(stage, _mark(out, stage))
    return (stage.output / "model").exists() and not any(name.startswith("model/") for name in damaged)


def _run_stage(stage: Stage, out: Path, title: str) -> None:
    """Run the stage and mark it as done."""
    console.rule(title, align="left")
    mark = _mark(out, stage)
    if stage.trains and stage.output.exists() and not _has_model(stage, out):
        console.print("Its model was deleted, and is needed: it is trained again, and what began with it is run again.")
    elif damaged := damaged_outputs(stage, mark):
        name, *others = damaged
        more = f" (and {len(others)} more)" if others else ""
        console.print(f"{name}{more} of its output is missing or has changed: it is run again.", markup=False)
    discard_damaged(stage, mark)
    console.print(f"$ {shlex.join(stage.command)}", style="dim", soft_wrap=True)
    started = time.monotonic()
    # Hashed before, so that an input that changes meanwhile is not taken for the one that was used.
    manifest = make_manifest(stage.name, settings=_settings(stage), inputs=list(stage.inputs))
    if stage.trains:
        seconds = train(stage, manifest)
    else:
        _run(stage)
        seconds = time.monotonic() - started
    manifest = replace(manifest, seconds=round(seconds, 1))
    record_outputs(stage, mark)
    write_manifest(mark, manifest)
    if stage.trains:
        discard_work(stage)
    console.print(f"{title}: done in {seconds:.0f} s")


def _run(stage: Stage) -> None:
    finished = subprocess.run(stage.command, preexec_fn=dies_with_parent, check=False)
    if finished.returncode:
        raise EngineError(
            f"stage {stage.name!r} failed with status {finished.returncode}; its messages are above. Mend the cause "
            "and run the same chain again: finished stages are skipped."
        )


def _settings(stage: Stage) -> dict[str, object]:
    return {"command": list(map(str, stage.command[1:]))}


def _mark(out: Path, stage: Stage) -> Path:
    return out / ".done" / stage.name.replace(" ", "-")
