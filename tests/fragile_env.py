"""A counting environment with deadly buttons, for the pool's tests: real processes die and hang, nothing is mocked.

It is found as a user's environment is: by an entry point, which `install` writes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_act.envs.base import EnvSpec, Observation, StepResult, Task

NAME = "fragile"
SLOW_TO_PREPARE = "slow to prepare"
"""A file of this name in `traps` makes preparing take longer than a test's time-out."""
SLOW_TO_RESET = "slow to reset"
"""A file of this name in `traps` makes every reset take RESET_SECONDS."""
RESET_SECONDS = 0.7
RELEASED = "released"
"""A file of this name in `traps` tells that an episode was released."""
SLOW = 2.5
"""Seconds of the action `slow`."""
LEAK_MB = 600
"""What the action `leak` makes its process hold for ever."""
_LEAKED: list[bytearray] = []
_ACTIONS = (
    "add",
    "die",
    "die once",
    "hang once",
    "slow",
    "fail",
    "fail oddly",
    "time out",
    "leave",
    "may not",
    "spoil once",
    "wander",
    "who",
    "leak",
)


class OddError(Exception):
    """One that no other process can unpickle, as many are."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class FragileEnvironment:
    """Counts `add` and `slow` actions. `traps` is a folder that remembers which one-time traps have sprung."""

    def __init__(self, traps: str = "") -> None:
        self._traps = Path(traps)
        self._task: Task | None = None
        self._count = 0

    def reset(self, task: Task) -> Observation:
        self._task, self._count = task, 0
        if (self._traps / SLOW_TO_RESET).exists():
            time.sleep(RESET_SECONDS)
        return Observation("count", f"{task.task_id}: 0", _ACTIONS)

    def step(self, action: str) -> StepResult:
        assert self._task is not None
        if action == "die" or (action == "die once" and self._springs(action)):
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "hang once" and self._springs(action):
            time.sleep(3600)
        if action == "slow":
            time.sleep(SLOW)
        if action == "leak":
            _LEAKED.append(bytearray(b"x") * (LEAK_MB * 2**20))
        if action == "fail oddly":
            raise OddError(7, "a bug with a class of its own")
        if action == "fail":
            raise RuntimeError("a bug in the environment")
        if action == "leave":
            sys.exit("it has had enough")
        if action == "may not":
            raise PermissionError(13, "Permission denied", "/its/own/file")
        if action == "time out":
            raise TimeoutError("its own server does not answer")
        if action == "spoil once" and self._springs(action):
            self._count = 1000
            raise RuntimeError("failed with its state half changed")
        self._count += action in ("add", "slow")
        told = {"who": str(os.getpid()), "wander": f"somewhere {time.time_ns()}"}
        text = told.get(action, f"{self._task.task_id}: {self._count}")
        return StepResult(text, _ACTIONS, 0.0, False, False, action in _ACTIONS)

    def release(self) -> None:
        self._task = None
        if self._traps.is_absolute():
            (self._traps / RELEASED).touch()

    def close(self) -> None:
        pass

    def _springs(self, action: str) -> bool:
        trap = self._traps / f"{action} {self._task}".replace("/", "_")[:100]
        sprung = trap.exists()
        trap.touch()
        return not sprung


def _tasks(split: str, **settings: Any) -> Sequence[Task]:
    return [Task(NAME, split, f"t{number}", "count") for number in range(8)]


def _prepare(traps: str = "") -> None:
    if (Path(traps) / SLOW_TO_PREPARE).exists():
        time.sleep(6)


SPEC = EnvSpec(NAME, FragileEnvironment, _tasks, {}, ("train",), prepare=_prepare)
