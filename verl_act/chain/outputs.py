"""What a stage has written, as its record in the chain's `.done` folder knows it: files with sizes and hashes.

A stage whose output was deleted, cut or changed since is run again.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

from verl_act.chain.stages import Stage
from verl_act.manifest import digest, own_manifest
from verl_act.output_folder import content, replace_file

_FILE_NAME = "outputs.json"
_HASHED_BYTES = 64 * 2**20
"""Of a larger file, such as a model's weights, the size alone is compared."""


def record_outputs(stage: Stage, record: Path) -> None:
    """Note in the folder `record` what the stage has written."""
    outputs = {str(path.relative_to(_root(stage))): _entry(path) for path in _files(stage)}
    replace_file(record / _FILE_NAME, json.dumps(outputs, indent=0) + "\n")


def damaged_outputs(stage: Stage, record: Path) -> list[str]:
    """The recorded files of the stage that are missing or other than they were, as seen from its output folder.

    What a stage of an earlier version has written is not recorded, and files that were added later are of no concern.
    """
    return [name for name, entry in _recorded(record).items() if not _is_as(_root(stage) / name, entry)]


def discard_damaged(stage: Stage, record: Path) -> None:
    """Remove what is left of an output whose manifest is gone or damaged: its command would refuse to replace it.

    Somebody else's files, which are not in the record, are left, and refused by the command.
    """
    if not stage.output.is_dir() or own_manifest(stage.output) is not None:
        return
    recorded = _recorded(record)
    if recorded and all(str(path.relative_to(stage.output)) in recorded for path in _below(stage.output)):
        shutil.rmtree(stage.output)


def _recorded(record: Path) -> dict[str, list]:
    try:
        outputs = json.loads((record / _FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return outputs if isinstance(outputs, dict) else {}


def _entry(path: Path) -> list:
    """Size, and the SHA-256 of a file that is not large."""
    state = path.stat()
    return [state.st_size, _hash(path, state.st_mtime_ns)] if state.st_size <= _HASHED_BYTES else [state.st_size]


@cache
def _hash(path: Path, mtime_ns: int) -> str:
    return digest(path)


def _is_as(path: Path, entry: list) -> bool:
    return path.is_file() and path.stat().st_size == entry[0] and _entry(path) == entry


def _root(stage: Stage) -> Path:
    return stage.output if stage.output.is_dir() or not stage.output.suffix else stage.output.parent


def _files(stage: Stage) -> list[Path]:
    """Those of the output folder; of a page, also the same numbers as Markdown and JSON."""
    if stage.output.is_dir():
        return _below(stage.output)
    return [path for end in (stage.output.suffix, ".md", ".json") if (path := stage.output.with_suffix(end)).is_file()]


def _below(folder: Path) -> list[Path]:
    tops = [path for path in content(folder) if not path.name.startswith(".")]
    return sorted(path for top in tops for path in (top, *top.rglob("*")) if path.is_file())
