"""Child processes that end with their parent, even if it is killed, and helpers that kill processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

TASK_TIMEOUT = 900.0
"""Default time limit in seconds for one job of a worker process. A trajectory of 100 steps, each tried by replays from
the start, takes half."""
_PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 30.0
"""Time in which processes may end by themselves."""


def dies_with_parent(by: int = signal.SIGTERM) -> None:
    """For `preexec_fn`: Linux sends the child the signal `by` when its parent exits. No effect on other systems.

    A verl run then also stops its Ray cluster and engines, since Ray's processes watch their driver. The parent is the
    *thread* that started the child; start children from a thread that lives as long as they should.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, by)


def run_to_its_end(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command that ends with its parent; return its status.

    Ctrl-C reaches the command too, and it is waited for: `subprocess.run` would kill it after a quarter of a second,
    and then vLLM's processes would stay and hold their memory.
    """
    with subprocess.Popen(command, env=environment, preexec_fn=dies_with_parent) as process:
        try:
            return process.wait()
        except BaseException:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            process.terminate()
            process.wait()
            raise


def quiet_vllm() -> None:
    """Show only errors of vLLM: it warns of settings that we chose, in the middle of progress bars."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def dies_with(parent: int) -> None:
    """Called in a running child: it is killed when the process `parent` exits, or at once if it has exited."""
    dies_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_if_stopped(pid: int) -> bool:
    """Kill a process and its children if it is stopped (SIGSTOP); return whether it was."""
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            kill_tree(pid)
            return True
    return False


def kill_tree(pid: int) -> None:
    """Kill a process and its children, such as a JVM, even if it is stopped."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.kill()
