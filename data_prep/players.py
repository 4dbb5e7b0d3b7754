"""Playing many tasks with two environments a process, in this process or in several; what comes out is the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

from verl_act.envs.base import Environment, Task
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, EnvError, cannot_write

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


@dataclass
class Player(Generic[Job, Outcome]):
    """What one process plays with: an environment, and a fresh one for the proof that it comes out the same again."""

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


_PLAYER: Player | None = None  # a worker process's own; environments cannot be sent between processes


def _start_worker(player: Player) -> None:
    global _PLAYER
    _PLAYER = player


def _play_in_worker(job: Any) -> Any:
    assert _PLAYER is not None
    return _PLAYER(job)


@contextmanager
def playing(player: Player[Job, Outcome], workers: int) -> Iterator[Callable[[Iterable[Job]], Iterator[Outcome]]]:
    """A `map` of `player` over `workers` processes, or plainly in this one; in order either way.

    Raises `EnvError` from the map where a process dies.
    """
    if workers <= 1:
        try:
            yield lambda jobs: map(player, jobs)
        finally:
            player.close()
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (player,))
    try:
        yield lambda jobs: _until_one_dies(pool.map(_play_in_worker, jobs, chunksize=4), workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _until_one_dies(outcomes: Iterator[Outcome], workers: int) -> Iterator[Outcome]:
    try:
        yield from outcomes
    except BrokenProcessPool as error:
        raise EnvError(
            f"One of {workers} worker processes was killed, or its engine crashed. Most often memory has run out: each "
            "worker holds two environments. Pass fewer --workers; nothing was written."
        ) from error
