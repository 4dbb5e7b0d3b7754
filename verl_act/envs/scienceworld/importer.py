"""Imports published ScienceWorld trajectories: rows are known by the numbers of their task, or by how they begin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import islice

from verl_act.envs.base import Environment, Task
from verl_act.envs.importer import Published, TrajectoryImporter
from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment
from verl_act.envs.scienceworld.experts import follows
from verl_act.envs.scienceworld.variations import EASY, VARIATIONS
from verl_act.schema import Context

_ETO_ID = re.compile(r"(\d{1,6})[_-](\d{1,6})")
_TOPIC_SIZES = (4, 3, 4, 4, 2, 3, 3, 2, 3, 2)
"""How many of the engine's tasks, which come topic by topic, belong to each topic of ScienceWorld's paper."""
_NAMES = iter(VARIATIONS)
_ETO_TASKS = [name for size in _TOPIC_SIZES for name in sorted(islice(_NAMES, size))]
"""ETO numbers the tasks by their names in ScienceWorld's first version: by topic, then alphabetically."""
_AGENTGYM_ID = re.compile(r"sciworld_(\d{1,6})")
# AgentGym counts the variations of the tasks in the engine's order, without these.
_NOT_IN_AGENTGYM = ("grow-", "inclined-plane-", "mendelian-genetics-")
# A second "connect" is excluded so that matching takes linear time on a text that repeats it.
_TERMINAL = re.compile(r"connect (?P<thing>(?:(?!wire|connect ).)+?) terminal 1 to ", re.IGNORECASE)
_RENAMED = {"green house": "greenhouse", "cachew": "cashew", "sandwhich": "sandwich"}
"""Spellings in AgentGym's data; the last two are typos (from Early Experience's notes on replaying)."""


class ScienceWorldImporter(TrajectoryImporter):
    """Rows have an id of ETO (`<task number>_<variation>`), of AgentGym (`sciworld_7`) or ours. Rows without one are
    known by their start. Whether a step is inferable is decided by the rules of `GoldExpert`.
    """

    @classmethod
    def recognizes(cls, row: Published) -> bool:
        return "this room is called" in row.instruction.lower() or row.task.lower().startswith("sciworld_")

    def is_known_by_start(self, row: Published) -> bool:
        return not row.task

    def find_tasks(self, row: Published) -> Sequence[Task]:
        task_id = row.task
        if (match := _ETO_ID.fullmatch(task_id)) and int(match[1]) < len(_ETO_TASKS):
            task_id = f"{_ETO_TASKS[int(match[1])]}/{match[2]}"
        elif (match := _AGENTGYM_ID.fullmatch(task_id)) and int(match[1]) < len(self._agentgym_ids):
            task_id = self._agentgym_ids[int(match[1])]
        return [self.tasks_by_id[task_id]] if task_id in self.tasks_by_id else []

    def respell(self, action: str, admissible: Sequence[str], environment: Environment) -> str:
        assert isinstance(environment, ScienceWorldEnvironment)
        name, possible = environment.reading(action)
        return name if possible else environment.reading(modern_action(action))[0]

    def is_inferable(self, task: Task, action: str, context: Context, environment: Environment) -> bool:
        assert isinstance(environment, ScienceWorldEnvironment)
        return environment.reading(action)[1] and follows(action, context)

    def hint(self, row: Published, *, task_known: bool) -> str:
        if row.task and not task_known:
            return ""
        used = self.settings.get("simplification", EASY)
        other = "'simplification=\"\"'" if used else f"simplification={EASY}"
        return (
            f"replayed with the simplification {used!r}: pass the one that the data were made with, such as "
            f"--env-settings {other}"
        )

    @cached_property
    def _agentgym_ids(self) -> list[str]:
        names = [name for name in VARIATIONS if not name.startswith(_NOT_IN_AGENTGYM)]
        return [f"{name}/{variation}" for name in names for variation in range(VARIATIONS[name])]


def modern_action(action: str) -> str:
    """Convert an action of AgentGym's data to the engine's wording: only wires have terminals now."""
    for old, new in _RENAMED.items():
        action = action.replace(old, new)
    return _TERMINAL.sub(r"connect \g<thing> to ", action)
