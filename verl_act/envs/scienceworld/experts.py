"""The expert of ScienceWorld: the package's own gold paths. It is privileged: it knows where everything is."""

from __future__ import annotations

import re
from collections.abc import Iterable

from verl_act.envs.base import Environment, Task
from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
from verl_act.errors import EnvError
from verl_act.schema import Context

SKIP = True


class GoldExpert:
    def __init__(self) -> None:
        self._left: list[str] = []
        self._played: list[str] = []

    def reset(self, task: Task) -> None:
        self._left, self._played = [], []

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        if not context.history:
            self._left = list(environment.gold_path())
        while self._left:
            text = self._left.pop(0)
            action = environment.menu_name(text)
            if action is None and not SKIP:
                action = text
            if action is not None:
                return action, False
        raise EnvError("The gold path ends before the goal.")
