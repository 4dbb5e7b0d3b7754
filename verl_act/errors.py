"""Every error a user can meet, in one hierarchy.

Each class is also the standard-library class a caller would expect, so `except ValueError` keeps working. A message
says what was wrong (value, file, row), why, and how to mend it; the command line prints it as one sentence and
exits with 2. A malformed *model reply* is never an error: it is data, scored and counted (see `parse.py`).
"""

from __future__ import annotations

import errno

_CANNOT_WRITE = (errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class ActError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(ActError, ValueError):
    """A setting, a configuration key or a combination of them cannot work."""


class OptionError(ConfigError):
    """An option of a command has a value that cannot work.

    `option` is its name in Python (`max_tokens`), of a key inside a JSON option with that option in front
    (`settings.candidates`); `problem` completes the sentence.
    """

    def __init__(self, option: str, problem: str) -> None:
        name, _, key = option.partition(".")
        super().__init__(f"--{name.replace('_', '-')}{f' {key}' if key else ''} {problem}")
        self.option = option
        self.problem = problem

    def __reduce__(self) -> tuple[type[OptionError], tuple[str, str]]:
        return type(self), (self.option, self.problem)


class DataError(ActError, ValueError):
    """An input file is missing, truncated, of another schema, or holds a bad row."""


class EmptySplitError(DataError):
    """The data hold no task of this split; they may of others."""


class EnvError(ActError, RuntimeError):
    """An environment could not be loaded, failed in an episode, or did not answer in time."""


class EngineError(ActError, RuntimeError):
    """An engine below us (vLLM, Ray, verl, the planner) failed or is missing."""


def cannot_write(error: BaseException) -> bool:
    """Whether a disk or a folder takes no more: a matter of the machine, whatever was being done."""
    return isinstance(error, OSError) and error.errno in _CANNOT_WRITE
