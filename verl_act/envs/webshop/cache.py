"""A cache folder that is used if it is intact and up to date, and rebuilt otherwise."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from verl_act.errors import DataError
from verl_act.output_folder import atomic_folder, locked

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_CONTENTS = "cache.json"
"""The file with the sources of the cache, and the size (bytes) and CRC-32 of each of its files."""
_CHUNK = 1 << 22
_REMEDY = (
    "A large catalogue is cached there and takes up to half the size of its product file. Free disk space, or set the "
    "environment variable VERL_ACT_CACHE to another folder."
)


class _Unusable(Exception):
    """The reason that a cache cannot be used, as one sentence."""


def cache_root() -> Path:
    """Return the folder of all caches: `$VERL_ACT_CACHE`, else below `$XDG_CACHE_HOME` or `~/.cache`."""
    configured = os.environ.get("VERL_ACT_CACHE")
    root = Path(configured) if configured else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "verl_act"
    return root.expanduser() / "webshop"


def from_cache(
    folder: Path, made_from: Mapping[str, Any], prepare: Callable[[Path], None], read: Callable[[Path], _T]
) -> _T:
    """Return what `read` loads from the cache `folder`. If the cache is damaged or was not made from `made_from`, log a
    warning, delete it, and let `prepare` write its files into a new folder; other processes that need it wait.

    Raises `DataError` if it can neither be used nor written.
    """
    try:
        return _read(folder, made_from, read)
    except _Unusable as unusable:
        problem = str(unusable)
    try:
        with locked(folder.with_suffix(".lock"), lambda holder: logger.warning("Waiting for %s.", holder)):
            try:
                return _read(folder, made_from, read)  # another process may have built it meanwhile
            except _Unusable as unusable:
                problem = str(unusable)
            logger.warning("%s", problem)
            _delete(folder)
            with atomic_folder(folder) as partial:
                prepare(partial)
                _write_contents(partial, made_from)
            return _read(folder, made_from, read)
    except OSError as error:
        raise _not_written(folder, problem, error) from error
    except DataError as error:
        if isinstance(error.__cause__, OSError) and _is_below(folder.parent, error.__cause__):
            raise _not_written(folder, problem, error.__cause__) from error
        raise
    except _Unusable as unusable:
        raise DataError(f"{unusable} It was just written, so the disk may be damaged. {_REMEDY}") from unusable


def _read(folder: Path, made_from: Mapping[str, Any], read: Callable[[Path], _T]) -> _T:
    if not os.path.lexists(folder):
        raise _Unusable(f"{folder}: building the cache of {made_from['products']}, once.")
    try:
        contents = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
        if contents["made_from"] != made_from:
            raise _Unusable(f"{folder}: the cache was made from other files or by another version and is rebuilt.")
        for name, (size, checksum) in contents["files"].items():
            if (folder / name).stat().st_size != size or _checksum(folder / name) != checksum:
                raise ValueError(f"{name} has changed")
        return read(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Unusable(f"{folder}: the cache was damaged ({error}) and is rebuilt.") from error


def _write_contents(folder: Path, made_from: Mapping[str, Any]) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): (path.stat().st_size, _checksum(path)) for path in paths}
    (folder / _CONTENTS).write_text(json.dumps({"made_from": made_from, "files": files}), encoding="utf-8")


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _delete(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def _not_written(folder: Path, problem: str, error: OSError) -> DataError:
    return DataError(f"{problem} But {folder} cannot be written: {error}. {_REMEDY}")


def _is_below(root: Path, error: OSError) -> bool:
    """Whether the error is about a file in `root`, or about writing, which names no file."""
    return error.filename is None or root.resolve() in Path(os.fsdecode(error.filename)).resolve().parents
