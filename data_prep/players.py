"""Work on environments, job by job, in this process or spread over several; what comes out is the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from typing import Any, Generic, Protocol, TypeVar

from verl_act.envs.base import Environment, Task
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, EnvError, cannot_write
from verl_act.options import Positive, check_options

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")
Job_contra = TypeVar("Job_contra", contravariant=True)
Outcome_co = TypeVar("Outcome_co", covariant=True)


def check_workers(workers: Positive) -> None:
    """Raise `OptionError` for a number of processes that cannot share any work."""
    check_options(check_workers, {"workers": workers})


@dataclass
class Player(Generic[Job, Outcome]):
    """Plays tasks with an environment, and with a fresh one for the proof that it comes out the same again."""

    env: str
    settings: Mapping[str, Any]

    @cached_property
    def environments(self) -> tuple[Environment, Environment]:
        spec = get_env(self.env)
        return spec.make(**self.settings), spec.make(**self.settings)

    def __call__(self, job: Job) -> Outcome:
        """The outcome of one job; never an `EnvError`."""
        raise NotImplementedError

    def lost(self, task: Task, error: Exception) -> str:
        """What is told of `task`, at which somebody's environment or expert failed: others' outcomes are not lost.

        Raises `error` itself where it is one of ours, but for `EnvError`, or of the disk.
        """
        if isinstance(error, EnvError):
            return str(error)
        if isinstance(error, ActError) or cannot_write(error):
            raise error
        logger.warning("%s is left out.", task, exc_info=error)
        with suppress(Exception):  # what has failed already is being told
            self.close()
        return f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """End the environments, if there are any; the next job makes others."""
        for environment in self.__dict__.pop("environments", ()):
            environment.close()


class Worker(Protocol[Job_contra, Outcome_co]):
    """What does the jobs of one process. It is sent there before it has made an environment."""

    def __call__(self, job: Job_contra, /) -> Outcome_co: ...

    def close(self) -> None:
        """End its environments, if there are any."""


_WORKER: Worker | None = None  # a process's own; environments cannot be sent between processes


def _start_process(worker: Worker) -> None:
    global _WORKER
    _WORKER = worker


def _work(job: Any) -> Any:
    assert _WORKER is not None
    return _WORKER(job)


@contextmanager
def spread(worker: Worker[Job, Outcome], workers: int) -> Iterator[Callable[[Iterable[Job]], Iterator[Outcome]]]:
    """A `map` of `worker` over `workers` processes, or plainly in this one; in order either way.

    Raises `EnvError` from the map where a process dies.
    """
    if workers <= 1:
        try:
            yield lambda jobs: map(worker, jobs)
        finally:
            worker.close()
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_process, (worker,))
    try:
        yield lambda jobs: _until_one_dies(pool.map(_work, jobs, chunksize=4), workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _until_one_dies(outcomes: Iterator[Outcome], workers: int) -> Iterator[Outcome]:
    try:
        yield from outcomes
    except BrokenProcessPool as error:
        raise EnvError(
            f"One of {workers} worker processes was killed, or its engine crashed. Most often memory has run out: each "
            "holds environments of its own. Pass fewer --workers; nothing was written."
        ) from error
