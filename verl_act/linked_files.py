"""The files below a folder, through links to other folders: data sets are often linked together from several disks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, NoReturn

from verl_act.errors import DataError


class Files(NamedTuple):
    """What lies below a folder, each in sorted order."""

    files: tuple[Path, ...]
    """Each once: of a folder that can be reached in several ways, by the way with the fewest links."""
    broken: tuple[Path, ...]
    """Links that lead nowhere."""
    repeated: tuple[Path, ...]
    """Links to a folder whose files are listed already, or to one that this folder lies in."""


def files_below(folder: str | os.PathLike[str]) -> Files:
    """Every file below `folder`. Raises `DataError` naming the folder where one cannot be read."""
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
    for start in starts:  # grows: real folders come first, then those behind a link, and those behind two
        if _identity(start) in seen | outer:
            repeated.append(start)
            continue
        for name, folders, names in os.walk(start, onerror=_fail):
            here = Path(name)
            if _identity(here) in seen:
                folders.clear()
                continue
            seen.add(_identity(here))
            starts += sorted(here / found for found in folders if (here / found).is_symlink())
            for path in (here / found for found in names):
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
