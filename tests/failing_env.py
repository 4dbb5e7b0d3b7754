"""An environment whose tasks fail as environments do: each says by its name how. Installed by an entry point.

A task is won by two actions `go`. `log` is a file that lists the tasks that were reset.
`spared` is a folder; where it has a file of a task's name, the task does not fail.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_act.envs.base import Environment, EnvSpec, Observation, StepResult, Task
from verl_act.errors import DataError
from verl_act.schema import Context

NAME = "failing"
ACTIONS = ("go", "wait")
FAILURES = {
    "hangs in reset": "timeout",
    "stops": "timeout",
    "exits": "process died",
    "crashes": "process died",
    "is killed": "process died",
    "may not": "error",
    "leaves": "error",
    "raises": "error",
}
"""Task -> the kind of its failure."""
GOOD = ("good 0", "good 1", "spoils close", "good 2")


def fail(how: str) -> None:
    """Fail as a task of this name does."""
    if how == "hangs in reset":
        time.sleep(3600)
    if how == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "exits":
        os._exit(3)
    if how == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "may not":
        raise PermissionError(13, "Permission denied", "/its/own/file")
    if how == "leaves":
        sys.exit("it has had enough")
    if how == "raises":
        raise IndexError("a bug in the environment")


class FailingEnvironment:
    def __init__(self, spared: str = "", seconds: float = 0.0, log: str = "") -> None:
        self._spared, self._seconds, self._log = spared, seconds, log
        self._task = ""
        self._taken = 0

    def reset(self, task: Task) -> Observation:
        self._task, self._taken = task.task_id, 0
        time.sleep(self._seconds)
        if self._log:
            with open(self._log, "a") as log:
                log.write(f"{task.task_id}\n")
        if not (self._spared and (Path(self._spared) / task.task_id).exists()):
            fail(task.task_id)
        return Observation("go twice", f"{task.task_id}: 0", ACTIONS)

    def step(self, action: str) -> StepResult:
        self._taken += action == "go"
        over = self._taken == 2
        return StepResult(f"{self._task}: {self._taken}", ACTIONS, float(over), over, over, action in ACTIONS)

    def close(self) -> None:
        if self._task == "spoils close":
            raise RuntimeError("cannot close")


class Expert:
    def reset(self, task: Task, seed: int) -> None:
        pass

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        return "go", True


def _tasks(split: str, **settings: Any) -> Sequence[Task]:
    named = [*GOOD[:1], *FAILURES, *GOOD[1:]] if split == "train" else [f"good {number}" for number in range(100)]
    return [Task(NAME, split, name, "go") for name in named]


SPEC = EnvSpec(NAME, FailingEnvironment, _tasks, {"go": Expert}, ("train", "good"))


class Failing:
    """A worker that fails as its job says."""

    def prepare(self) -> None:
        pass

    def __call__(self, job: str) -> str:
        if job.startswith("is killed once"):
            trap = Path(job.partition(":")[2])
            if not trap.exists():
                trap.touch()
                fail("is killed")
        if job == "data error":
            raise DataError("wrong settings")
        fail(job)
        return job.upper()

    def close(self) -> None:
        pass


class Unstartable(Failing):
    def prepare(self) -> None:
        os._exit(5)
