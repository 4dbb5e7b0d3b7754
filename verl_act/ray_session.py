"""Ray for this package's commands; verl starts its own."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from verl_act.errors import EngineError, first_line

_CAUSE = re.compile(r"^(?!ray\.)(?:\w+\.)*(\w+(?:Error|Exception): .*)$", re.M)
_WORKER = re.compile(r"pid=(\d+), ip=([\w.:]+)")


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the duration of the block: the cluster at $RAY_ADDRESS, or else a new local one.

    Other clusters on this machine are ignored: they may belong to other users or packages. A session that the caller
    has started is reused and kept alive.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address=None if "RAY_ADDRESS" in os.environ else "local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def worker_failed(error: Exception) -> EngineError:
    """What to say of Ray's error of a worker: its text is a trace of hundreds of lines, and what the worker and the
    processes below it print is in a log file alone."""
    text = str(error)
    causes, workers = _CAUSE.findall(text), _WORKER.findall(text)
    number, node = workers[-1] if workers else ("*", "its node")
    logs = f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_*/logs/worker-*-{number}"
    return EngineError(
        f"a worker on Ray failed: {causes[-1] if causes else first_line(error)} What it and its engine printed is in "
        f"{logs}.out and .err on {node}. Fix the cause and run the same command again."
    )
