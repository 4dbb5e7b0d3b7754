"""Run the stages of a recipe: skip what is up to date, go on where a killed chain stopped."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from verl_act.chain.process import dies_with_parent
from verl_act.chain.recipe import Recipe
from verl_act.chain.stages import Stage, stages
from verl_act.chain.train import discard_work, train
from verl_act.errors import EngineError
from verl_act.manifest import Manifest, make_manifest, up_to_date, write_manifest

console = Console(highlight=False)


def run_chain(recipe: Recipe, out: Path) -> None:
    """Run all stages of `recipe` that are not up to date, as `run_stages` does."""
    run_stages(stages(recipe, out), out)


def run_stages(planned: Sequence[Stage], out: Path) -> None:
    """Run every stage that is not up to date; each writes `out/.done/<stage>/manifest.json` when it is.

    Raises `EngineError` naming the stage, its command and its log where a stage fails; what was finished stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(planned, 1):
        wanted = _manifest(stage)
        title = f"[{number}/{len(planned)}] {stage.name}"
        if wanted and stage.output.exists() and up_to_date(_mark(out, stage), wanted):
            console.print(f"{title}: up to date")
            if stage.trains:
                discard_work(stage)  # killed while it was doing so
            continue
        console.rule(title, align="left")
        console.print(f"$ {shlex.join(stage.command)}", style="dim", soft_wrap=True)
        started = time.monotonic()
        # Hashed before, so that an input that changes meanwhile is not taken for the one that was used.
        manifest = wanted or make_manifest(stage.name, settings=_settings(stage), inputs=list(stage.inputs))
        if stage.trains:
            seconds = train(stage)
        else:
            _run(stage)
            seconds = time.monotonic() - started
        manifest = replace(manifest, seconds=round(seconds, 1))
        mark = _mark(out, stage)
        mark.mkdir(parents=True, exist_ok=True)
        write_manifest(mark, manifest)
        if stage.trains:
            write_manifest(stage.output, manifest)
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
    return {"command": list(stage.command[1:])}


def _manifest(stage: Stage) -> Manifest | None:
    """What the stage's mark must say to be up to date; None where an input is not there yet."""
    if not all(path.exists() for path in stage.inputs):
        return None
    return make_manifest(stage.name, settings=_settings(stage), inputs=list(stage.inputs))


def _mark(out: Path, stage: Stage) -> Path:
    return out / ".done" / stage.name.replace(" ", "-")
