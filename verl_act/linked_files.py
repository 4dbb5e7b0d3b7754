"""The files below a folder, following links to folders: data sets are often spread over several disks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, NoReturn

from verl_act.errors import DataError


class Files(NamedTuple):
    """The content of a folder, each list sorted."""

    files: tuple[Path, ...]
    """Each listed once, by the path with the fewest links."""
    broken: tuple[Path, ...]
    """Links whose target does not exist."""
    repeated: tuple[Path, ...]
    """Links to a folder that is listed already, or to a parent of this folder."""


def files_below(folder: str | os.PathLike[str]) -> Files:
    """Every file below `folder`. Raises `DataError` naming the folder if one cannot be read."""
    try:
        return _files_below(Path(folder))
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read: {error.strerror}. Give this user the right to read the folder, or move "
            "it out of the data."
        ) from error


def _files_below(top: Path) -> Files:
    outer = {_identity(parent) for parent in top.resolve().parents}
    seen: set[tuple[int, int]] = set()
    files: list[Path] = []
    broken: list[Path] = []
    repeated: list[Path] = []
    starts = [top]
    for start in starts:  # grows in the loop: real folders first, then those behind one link, then behind two
        if _identity(start) in seen | outer:
            repeated.append(start)
            continue
        for directory, folders, names in os.walk(start, onerror=_fail):
            here = Path(directory)
            if _identity(here) in seen:
                folders.clear()
                continue
            seen.add(_identity(here))
            starts += sorted(here / entry for entry in folders if (here / entry).is_symlink())
            for path in (here / entry for entry in names):
                if path.is_file():
                    files.append(path)
                elif path.is_symlink():
                    broken.append(path)
    return Files(tuple(sorted(files)), tuple(sorted(broken)), tuple(repeated))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _fail(error: OSError) -> NoReturn:
    raise error
