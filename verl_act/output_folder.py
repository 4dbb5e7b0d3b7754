"""The folder that a command writes: reserved when the command starts, put in place as a whole when it ends.

A command holds the folder's lock while it runs, so that two processes never write one folder. It writes aside and
renames: a folder with a manifest is whole. The folder that is replaced is moved aside first, so that a kill at any
moment leaves one of the two to be restored (`finish_replacement`). A folder that cannot be renamed, such as the mount
point of a container's volume, is filled from within instead, its manifest last.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import psutil
from filelock import FileLock, Timeout

from verl_act.errors import ConfigError, DataError, cannot_write
from verl_act.manifest import FILE_NAME, own_manifest

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_INTERNAL = ".verl_act"
"""Subfolder of a folder that cannot be renamed, for what otherwise lies next to the folder."""
_NOT_CONTENT = (_INTERNAL, "lost+found")
"""What an empty folder may hold: ext4 creates the second one at the root of each file system."""
_NOT_RENAMED = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
"""Answers to a rename of mount points, of folders of a container's image, and where the parent is not writable."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Answers of file systems without locks."""
_NO_SPACE = re.compile(r"No space left|StorageFull|FileTooLarge|File too large|quota exceeded", re.IGNORECASE)
"""In the errors of libraries that do not raise `OSError`, such as safetensors and `shutil.Error`."""

_reserved: dict[Path, tuple[str, ...]] = {}
"""Folder reserved by this process -> the stages whose output may be replaced there."""
_without_lock: set[Path] = set()


def writes_folder(*stages: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """For a function whose argument `out` is the folder it writes: reserves the folder while it runs (`reserved`).

    `stages` is the stage of its manifest, followed by others whose output it may replace.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)

        @wraps(function)
        def reserving(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with reserved(signature.bind(*args, **kwargs).arguments["out"], *stages):
                return function(*args, **kwargs)

        return reserving

    return decorate


@contextmanager
def reserved(folder: str | os.PathLike[str], *stages: str, replace_any: bool = False) -> Iterator[Path]:
    """Keep other processes from writing `folder`, and yield its absolute path. This process may reserve it repeatedly.

    `stages` are those whose output may be replaced (none: any of ours); `replace_any` allows foreign files too.
    Raises `ConfigError` where another process has reserved it, or it holds anything else.
    """
    folder = Path(folder).resolve()
    _require_folder(folder)

    def refuse(holder: str) -> None:
        raise ConfigError(
            f"{folder}: {holder} is writing this folder. Wait until it has ended, or give another folder."
        )

    outer = _reserved.get(folder)
    try:
        with locked(work_path(folder, "lock"), refuse):
            _finish_replacement(folder)
            if not replace_any:
                _require_replaceable(folder, stages)
            _reserved[folder] = stages or outer or ()
            yield folder
    finally:
        _reserved.pop(folder, None)
        if outer is not None:
            _reserved[folder] = outer
        with suppress(OSError):  # not empty, or not there
            (folder / _INTERNAL).rmdir()


def work_path(folder: str | os.PathLike[str], name: str) -> Path:
    """Where a command that writes `folder` keeps something named `name` until it is done, such as work to resume.

    It lies next to the folder, or within one that cannot be renamed.
    """
    folder = Path(folder).resolve()
    return folder / _INTERNAL / name if _cannot_be_renamed(folder) else folder.with_name(f".{folder.name}.{name}")


@contextmanager
def atomic_folder(folder: str | os.PathLike[str], replace_any: bool = False) -> Iterator[Path]:
    """A fresh folder to write into; it takes the place of `folder` only when the block ends without an error.

    What is there already must be replaceable, unless the caller knows it and sets `replace_any`. Raises `DataError`
    where the disk takes no more; what was there before is unchanged then.
    """
    with reserved(folder, replace_any=replace_any) as folder:
        partial = work_path(folder, "partial")
        if partial.exists():
            shutil.rmtree(partial)
        try:
            partial.mkdir(parents=True)
            yield partial
            _check_stage(folder, partial)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, Exception) and _is_full(error, partial):
                raise DataError(
                    f"{folder}: could not be written: {error}. Free space, or choose another folder; what was there "
                    "before is unchanged."
                ) from error
            raise
        _put_in_place(folder, partial)


def finish_replacement(folder: str | os.PathLike[str]) -> None:
    """Restore `folder` where a process was killed while `atomic_folder` replaced it: its new one was whole then."""
    folder = Path(folder).resolve()
    if _is_half_replaced(folder):
        with suppress(ConfigError), reserved(folder, replace_any=True):  # otherwise that process is at work
            pass


@contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`, which the kernel releases when this process dies.

    `busy` is called with a description of the process that holds it: it may raise; otherwise this waits. On a file
    system without locks there is a warning, and no lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True, fallback_to_soft=False, on_acquired=_sign)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            busy(_holder(path))
            lock.acquire(timeout=-1)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if path not in _without_lock:
            logger.warning("%s: %s, so no lock. Run one process at a time in this folder.", path, error.strerror)
            _without_lock.add(path)
    try:
        yield
    finally:
        if lock.is_locked:
            if lock.lock_counter == 1:
                path.unlink(missing_ok=True)  # while it is held; who waits for it notices
            lock.release()


@contextmanager
def reserved_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from writing the file `path`. Raises `ConfigError` where one has reserved it."""
    path = Path(path).resolve()
    _require_folder(path.parent)

    def refuse(holder: str) -> None:
        raise ConfigError(f"{path}: {holder} is writing this file. Wait until it has ended, or give another name.")

    with locked(path.with_name(f".{path.name}.lock"), refuse):
        yield


def replace_file(path: Path, text: str) -> None:
    """Write `text`, aside first and then renamed. A lone surrogate, which a damaged reply may hold, becomes a question
    mark. Raises `DataError` where it cannot be written; what was there before is unchanged then."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(text.encode("utf-8", errors="replace"))
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise DataError(f"{path}: could not be written: {error}. Free space or choose another folder.") from error


def _require_folder(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{existing}: is a file, and a folder is to be written. Give another name.")


def _sign(lock_file: int) -> None:
    os.ftruncate(lock_file, 0)
    os.write(lock_file, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(lock_file: Path) -> str:
    try:
        return lock_file.read_text(errors="replace", encoding="utf-8") or "another process"
    except OSError:
        return "another process"


def _require_replaceable(folder: Path, stages: tuple[str, ...]) -> None:
    """Raise `ConfigError` where `folder` holds what none of `stages` has written: replacing it would lose it."""
    if not content(folder):
        return
    manifest = own_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"{folder}: holds files that this package has not written (it has no {FILE_NAME} of ours), and would be "
            "replaced as a whole. Give a new folder, or empty this one."
        )
    if stages and manifest.stage not in stages:
        raise ConfigError(
            f"{folder}: holds the output of stage {manifest.stage!r}, which {stages[0]!r} would replace. Give another "
            "folder, or delete this one."
        )


def _check_stage(folder: Path, partial: Path) -> None:
    """A command that did not find its own name in the manifest could not be repeated."""
    stages, manifest = _reserved[folder], own_manifest(partial)
    assert not stages or manifest is None or manifest.stage == stages[0], (manifest, stages)


def content(folder: Path) -> list[Path]:
    """What replacing the folder would remove; nothing where there is no folder."""
    return [path for path in folder.iterdir() if path.name not in _NOT_CONTENT] if folder.is_dir() else []


def _cannot_be_renamed(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK, effective_ids=True):
        return True
    # Bind mounts of the same file system, too.
    return any(Path(partition.mountpoint) == folder for partition in psutil.disk_partitions(all=True))


def _put_in_place(folder: Path, partial: Path) -> None:
    if partial.parent == folder / _INTERNAL:
        _fill(folder, partial)
        return
    old = _old(folder)
    if folder.exists():
        try:
            os.replace(folder, old)
        except OSError as error:
            if error.errno not in _NOT_RENAMED:
                raise
            _fill(folder, partial)
            return
    os.replace(partial, folder)
    if old.exists():
        shutil.rmtree(old)


def _fill(folder: Path, partial: Path) -> None:
    """Replace the content of `folder`, which stays where it is. A kill at any moment is made good by `_finish_fill`."""
    new = folder / _INTERNAL / "new"
    if partial.parent != new.parent:
        inner = new.with_name("partial")
        shutil.rmtree(inner, ignore_errors=True)
        inner.parent.mkdir(exist_ok=True)
        shutil.move(partial, inner)
        partial = inner
    os.replace(partial, new)
    _finish_fill(folder)


def _finish_fill(folder: Path) -> None:
    """From `new`, which is whole, through `moving`, when the former content is gone, to the new content."""
    new, moving = folder / _INTERNAL / "new", folder / _INTERNAL / "moving"
    if new.exists():
        # The manifest first: without one, the folder is not whole.
        for path in sorted(content(folder), key=lambda path: path.name != FILE_NAME):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        os.replace(new, moving)
    if moving.exists():
        for path in sorted(moving.iterdir(), key=lambda path: path.name == FILE_NAME):
            os.replace(path, folder / path.name)
        moving.rmdir()


def _is_half_replaced(folder: Path) -> bool:
    internal = folder / _INTERNAL
    return _old(folder).exists() or (internal / "new").exists() or (internal / "moving").exists()


def _finish_replacement(folder: Path) -> None:
    """As `finish_replacement`, in a folder that is reserved."""
    partial, old = folder.with_name(f".{folder.name}.partial"), _old(folder)
    if old.exists():
        if not folder.exists():
            os.replace(partial if partial.exists() else old, folder)
        if old.exists():
            shutil.rmtree(old)
    _finish_fill(folder)


def _old(folder: Path) -> Path:
    """Where the folder that is replaced lies until the new one is in its place."""
    return folder.with_name(f".{folder.name}.old")


def _is_full(error: Exception, partial: Path) -> bool:
    """Whether the disk below `partial` takes no more: not so where a file elsewhere could not be read."""
    if cannot_write(error):
        name = getattr(error, "filename", None)
        return name is None or partial in Path(os.fsdecode(name)).parents or partial == Path(os.fsdecode(name))
    return not isinstance(error, ConfigError | DataError) and bool(_NO_SPACE.search(str(error)))
