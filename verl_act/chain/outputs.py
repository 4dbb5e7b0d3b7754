"""Sizes and hashes of the files that a stage has written, recorded in the chain's `.done` folder.

A stage whose output has since been deleted, truncated or changed is run again.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from verl_act.chain.stages import Stage
from verl_act.manifest import digest, own_manifest
from verl_act.output_folder import content, replace_file
from verl_act.run_folder import OUTPUTS

_HASHED_BYTES = 64 * 2**20
"""Larger files, such as a model's weights, are compared by size alone."""


def record_outputs(stage: Stage, record: Path) -> None:
    """Write the stage's output files, with sizes and hashes, to the folder `record`."""
    outputs = {str(path.relative_to(_base_folder(stage))): _entry(path) for path in _files(stage)}
    replace_file(record / OUTPUTS, json.dumps(outputs, indent=0) + "\n")


def damaged_outputs(stage: Stage, record: Path) -> list[str]:
    """Recorded files of the stage that are missing or have changed, as paths relative to its output folder.

    Files that were added later are ignored.
    """
    return [name for name, entry in _recorded(record).items() if not _is_unchanged(_base_folder(stage) / name, entry)]


def discard_damaged(stage: Stage, record: Path) -> None:
    """Remove an output folder whose manifest is missing or damaged: its command would refuse to replace it.

    A folder with files that are not in the record is kept; the command refuses it.
    """
    if not stage.output.is_dir() or own_manifest(stage.output) is not None:
        return
    recorded = _recorded(record)
    if recorded and all(str(path.relative_to(stage.output)) in recorded for path in _files_below(stage.output)):
        shutil.rmtree(stage.output)


def _recorded(record: Path) -> dict[str, list[Any]]:
    try:
        outputs = json.loads((record / OUTPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return outputs if isinstance(outputs, dict) else {}


def _entry(path: Path) -> list[Any]:
    """[size in bytes], and the SHA-256 if the file is small enough."""
    state = path.stat()
    return [state.st_size, _hash(path, state.st_mtime_ns)] if state.st_size <= _HASHED_BYTES else [state.st_size]


@cache
def _hash(path: Path, mtime_ns: int) -> str:
    return digest(path)


def _is_unchanged(path: Path, entry: list[Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry[0] and _entry(path) == entry


def _base_folder(stage: Stage) -> Path:
    return stage.output if stage.output.is_dir() or not stage.output.suffix else stage.output.parent


def _files(stage: Stage) -> list[Path]:
    """Files in the output folder; for the report page, also its Markdown and JSON versions."""
    if stage.output.is_dir():
        return _files_below(stage.output)
    return [path for end in (stage.output.suffix, ".md", ".json") if (path := stage.output.with_suffix(end)).is_file()]


def _files_below(folder: Path) -> list[Path]:
    entries = [path for path in content(folder) if not path.name.startswith(".")]
    return sorted(path for entry in entries for path in (entry, *entry.rglob("*")) if path.is_file())
