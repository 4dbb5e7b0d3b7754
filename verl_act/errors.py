"""All errors that users can meet.

Each class also derives from the standard-library class that a caller would expect, so `except ValueError` works. A
message says what was wrong (value, file, row), why, and how to fix it; the command line prints it and exits with 2.
A malformed *model reply* is never an error: it is data, scored and counted (see `parse.py`).
"""

from __future__ import annotations

import errno
import os

_CANNOT_WRITE = (errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class ActError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(ActError, ValueError):
    """A setting, a configuration key or a combination of them cannot work."""


class OptionError(ConfigError):
    """An option of a command has a value that cannot work.

    `option` is its name in Python (`max_tokens`), or `option.key` for a key of a JSON option (`settings.candidates`).
    `problem` completes the sentence.
    """

    def __init__(self, option: str, problem: str) -> None:
        name, _, key = option.partition(".")
        super().__init__(f"--{name.replace('_', '-')}{f' {key}' if key else ''} {problem}")
        self.option = option
        self.problem = problem

    def __reduce__(self) -> tuple[type[OptionError], tuple[str, str]]:
        return type(self), (self.option, self.problem)


class InstallationError(ConfigError):
    """Something of the installation is wrong; `remedy` is one sentence on how to fix it."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(f"{detail} {remedy}")
        self.detail = detail
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[InstallationError], tuple[str, str]]:
        return type(self), (self.detail, self.remedy)


class NotInstalledError(InstallationError):
    """Something optional is missing; `remedy` says how to get it."""


class DataError(ActError, ValueError):
    """An input file is missing, truncated, of another schema, or holds a bad row."""


class EmptySplitError(DataError):
    """The data have no task of this split, but may have tasks of others."""


class EnvError(ActError, RuntimeError):
    """An environment could not be loaded, failed in an episode, or did not answer in time."""


class EngineError(ActError, RuntimeError):
    """An engine below us (vLLM, Ray, verl, the planner) failed or is missing."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def describe(error: OSError) -> str | None:
    """Describe an error of a file, folder or disk and its fix; None for other errors."""
    file, reason = error.filename2 or error.filename, error.strerror
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{reason}: raise the limit of open files (ulimit -n), or pass fewer --workers."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return (
            f"{file or 'output'}: could not be written: {reason}. Free space, or choose another folder; what was there "
            "before is unchanged."
        )
    if not isinstance(file, str | bytes | os.PathLike):
        return None
    file = os.fsdecode(file)
    if error.errno in (errno.EACCES, errno.EPERM):
        if os.path.exists(file) and not os.access(file, os.R_OK):
            return f"{file}: could not be read: {reason}. Give the user who runs this the right to read it (chmod)."
        folder = _existing(file)
        if not os.access(folder, os.X_OK | os.R_OK):
            return f"{file}: could not be read: {reason} in {folder}. Give the user who runs this the right (chmod)."
        return (
            f"{file}: could not be written: {reason}. Give the user who runs this the right to write in {folder}, or "
            "choose another folder; what was there before is unchanged."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{file}: {reason}: a file is where a folder is needed. Could not be written; name another folder."
    return f"{file}: {reason}. Check the name, or give another one."


def _existing(file: str) -> str:
    """The closest parent folder of `file` that exists."""
    folder = os.path.dirname(os.path.abspath(file))
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder


def cannot_write(error: BaseException) -> bool:
    """Whether writing failed because of the disk or a folder's permissions."""
    return isinstance(error, OSError) and error.errno in _CANNOT_WRITE
