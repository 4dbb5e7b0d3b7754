"""Every error a user can meet, in one hierarchy.

Each class is also the standard-library class a caller would expect, so `except ValueError` keeps working. A message
says what was wrong (value, file, row), why, and how to mend it; the command line prints it as one sentence and
exits with 2. A malformed *model reply* is never an error: it is data, scored and counted (see `parse.py`).
"""

import errno

_CANNOT_WRITE = (errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class ActError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(ActError, ValueError):
    """A setting, a configuration key or a combination of them cannot work."""


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
