"""The output folder of a command: locked when the command starts, replaced as a whole when it ends.

A command holds the folder's lock while it runs, so that two processes never write one folder. It writes to a temporary
folder and renames it: a folder with a manifest is complete. The old folder is moved aside first, so that after a kill
one of the two can be restored (`finish_replacement`). A folder that cannot be renamed, such as the mount point of a
container's volume, has its content replaced instead, the manifest last.
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
"""Subfolder for temporary files, used where a folder cannot be renamed; otherwise they are next to the folder."""
_NOT_CONTENT = (_INTERNAL, "lost+found")
"""Ignored entries of an empty folder: ext4 creates the second one at the root of each file system."""
_NOT_RENAMED = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors when renaming mount points, folders of a container's image, and folders whose parent is not writable."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems without locks."""
_NO_SPACE = re.compile(r"No space left|StorageFull|FileTooLarge|File too large|quota exceeded", re.IGNORECASE)
"""Messages of a full disk in errors that are not `OSError`, such as those of safetensors, and `shutil.Error`."""

_reserved: dict[Path, tuple[str, ...]] = {}
"""Folder reserved by this process -> stages whose output it may replace."""
_without_lock: set[Path] = set()


def writes_folder(*stages: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorator that reserves the folder in the function's argument `out` while it runs (see `reserved`).

    `stages` is the stage in its manifest, followed by others whose output it may replace.
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
    """Lock `folder` against other processes, and yield its absolute path. This process may reserve it repeatedly.

    `stages` may have their output replaced (none: every stage of this package); `replace_any` allows other files too.
    Raises `ConfigError` if another process has reserved it, or it holds anything else.
    """
    folder = Path(folder).resolve()
    _require_folder(folder)

    def refuse(holder: str) -> None:
        raise ConfigError(
            f"{folder}: {holder} is writing this folder. Wait until it has ended, or choose another folder."
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
        with suppress(OSError):  # not empty, or missing
            (folder / _INTERNAL).rmdir()


def work_path(folder: str | os.PathLike[str], name: str) -> Path:
    """Path for temporary data named `name` of the command that writes `folder`, such as work to resume.

    It is next to the folder, or inside one that cannot be renamed.
    """
    folder = Path(folder).resolve()
    return folder / _INTERNAL / name if cannot_be_renamed(folder) else folder.with_name(f".{folder.name}.{name}")


@contextmanager
def atomic_folder(folder: str | os.PathLike[str], replace_any: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write to; it replaces `folder` when the block ends without an error.

    Existing content must be replaceable (see `reserved`), unless `replace_any` is set. Raises `DataError` if the disk
    is full; existing content is then unchanged.
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
                    f"{folder}: could not be written: {error}. Free space, or choose another folder; its previous "
                    "content is unchanged."
                ) from error
            raise
        _replace_with(folder, partial)


def finish_replacement(folder: str | os.PathLike[str]) -> None:
    """Complete the replacement of `folder` if a process was killed while `atomic_folder` replaced it."""
    folder = Path(folder).resolve()
    if _is_half_replaced(folder):
        with suppress(ConfigError), reserved(folder, replace_any=True):  # the process that replaces it is still running
            pass


@contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`, which the kernel releases when this process dies.

    If another process holds it, `busy` is called with a description of that process, and may raise; otherwise this
    waits. A file system without locks causes a warning, and no lock is held.
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
                path.unlink(missing_ok=True)  # before it is released; waiting processes notice
            lock.release()


@contextmanager
def reserved_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Lock the file `path` against other processes. Raises `ConfigError` if one has reserved it."""
    path = Path(path).resolve()
    _require_folder(path.parent)

    def refuse(holder: str) -> None:
        raise ConfigError(f"{path}: {holder} is writing this file. Wait until it has ended, or choose another name.")

    with locked(path.with_name(f".{path.name}.lock"), refuse):
        yield


def replace_file(path: Path, text: str) -> None:
    """Write `text` to a temporary file and rename it to `path`. Lone surrogates, as in a malformed reply, become
    question marks. Raises `DataError` if it cannot be written; an existing file is then unchanged.
    """
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
        raise ConfigError(f"{existing} is a file, but a folder is needed here. Choose another name.")


def _sign(lock_file: int) -> None:
    os.ftruncate(lock_file, 0)
    os.write(lock_file, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(lock_file: Path) -> str:
    try:
        return lock_file.read_text(errors="replace", encoding="utf-8") or "another process"
    except OSError:
        return "another process"


def _require_replaceable(folder: Path, stages: tuple[str, ...]) -> None:
    """Raise `ConfigError` if `folder` holds anything that none of `stages` has written: it would be lost."""
    if not content(folder):
        return
    manifest = own_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"{folder}: holds files that this package has not written (it has no valid {FILE_NAME}), and they would be "
            "deleted. Choose a new folder, or empty this one."
        )
    if stages and manifest.stage not in stages:
        raise ConfigError(
            f"{folder}: holds the output of stage {manifest.stage!r}, which {stages[0]!r} would replace. "
            "Choose another folder, or delete this one."
        )


def _check_stage(folder: Path, partial: Path) -> None:
    """Check that the new manifest is of the reserved stage; otherwise the command could not be repeated."""
    stages, manifest = _reserved[folder], own_manifest(partial)
    assert not stages or manifest is None or manifest.stage == stages[0], (manifest, stages)


def content(folder: Path) -> list[Path]:
    """Entries of the folder that replacing it would delete; empty if it does not exist."""
    return [path for path in folder.iterdir() if path.name not in _NOT_CONTENT] if folder.is_dir() else []


def cannot_be_renamed(folder: Path) -> bool:
    """Whether the folder has to be filled in place: a mount point, or one in a parent that is read-only."""
    if not folder.is_dir():
        return False
    if os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK, effective_ids=True):
        return True
    # Bind mounts of the same file system too, which `ismount` does not report.
    return any(Path(partition.mountpoint) == folder for partition in psutil.disk_partitions(all=True))


def _replace_with(folder: Path, partial: Path) -> None:
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
    """Replace the content of `folder` without renaming it. After a kill, `_finish_fill` completes it."""
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
    """Complete a replacement from `new` (complete, old content present) or `moving` (old content deleted)."""
    new, moving = folder / _INTERNAL / "new", folder / _INTERNAL / "moving"
    if new.exists():
        # The manifest first: without one, the folder counts as incomplete.
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
    """Like `finish_replacement`, for a folder that is already reserved."""
    partial, old = folder.with_name(f".{folder.name}.partial"), _old(folder)
    if old.exists():
        if not folder.exists():
            os.replace(partial if partial.exists() else old, folder)
        if old.exists():
            shutil.rmtree(old)
    _finish_fill(folder)


def _old(folder: Path) -> Path:
    """Path of the old folder while it is being replaced."""
    return folder.with_name(f".{folder.name}.old")


def _is_full(error: Exception, partial: Path) -> bool:
    """Whether `error` says that `partial` could not be written, and not that another file could not be read."""
    if cannot_write(error):
        name = getattr(error, "filename", None)
        return name is None or partial in Path(os.fsdecode(name)).parents or partial == Path(os.fsdecode(name))
    return not isinstance(error, ConfigError | DataError) and bool(_NO_SPACE.search(str(error)))
