"""Child processes that end with their parent, even when the parent is killed."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def dies_with_parent() -> None:
    """For `preexec_fn`: Linux sends the child SIGTERM when the parent is gone. Elsewhere it does nothing.

    A verl run then takes its Ray cluster and its engines with it: Ray's processes watch their driver in turn.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
