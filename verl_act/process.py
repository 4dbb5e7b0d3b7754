"""Child processes that end with their parent, even when the parent is killed, or in time."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress

import psutil

TASK_TIMEOUT = 900.0
"""Seconds of a worker process's job by default: a trajectory of a hundred steps, each probed by replays from the start,
takes half."""
_PR_SET_PDEATHSIG = 1


def dies_with_parent(by: int = signal.SIGTERM) -> None:
    """For `preexec_fn`: Linux sends the child the signal `by` when the parent is gone. Elsewhere it does nothing.

    A verl run then takes its Ray cluster and its engines with it: Ray's processes watch their driver in turn. The
    parent is the *thread* that started the child; start children from one that lives as long as they shall.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, by)


def dies_with(parent: int) -> None:
    """In a child that has begun: it is killed when the process `parent` is gone, also where that is so already."""
    dies_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_if_stopped(pid: int) -> bool:
    """Kill a process that is stopped (SIGSTOP), with those that it started; whether it was."""
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            kill_tree(pid)
            return True
    return False


def kill_tree(pid: int) -> None:
    """Kill a process and those that it started, such as a JVM; a stopped one too."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.kill()
