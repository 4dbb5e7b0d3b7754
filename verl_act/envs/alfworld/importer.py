"""Imports published ALFWorld trajectories: rows are known by the folders of their game, or by how they begin."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath

from verl_act.envs.base import Environment, Task
from verl_act.envs.importer import Published, TrajectoryImporter
from verl_act.parse import match_action

_PUT = "put "
_INTO = re.compile(r" (?:in/on|into|onto|in|on) (?=\S)")


class AlfworldImporter(TrajectoryImporter):
    """Rows name their `game_file`. AgentGym's have an index of its own, such as `alfworld_0`, and other rows nothing:
    these are known by their start.
    """

    @classmethod
    def recognizes(cls, row: Published) -> bool:
        named = row.task.endswith(".tw-pddl") or row.task.lower().startswith("alfworld_")
        return named or "you are in the middle of a room" in row.instruction.lower()

    def is_known_by_start(self, row: Published) -> bool:
        return len(_folders(row)) < 2

    def find_tasks(self, row: Published) -> Sequence[Task]:
        return self._by_path.get("/".join(_folders(row)[-2:]), ())

    def respell(self, action: str, admissible: Sequence[str], environment: Environment) -> str:
        modern = modern_command(action)
        return match_action(modern, admissible) or modern

    @cached_property
    def _by_path(self) -> dict[str, list[Task]]:
        by_path: dict[str, list[Task]] = defaultdict(list)
        for task in self.tasks:
            by_path["/".join(PurePosixPath(task.task_id).parts[-2:])].append(task)
        return by_path


def modern_command(command: str) -> str:
    """Return `put mug 1 in/on desk 1` as `move mug 1 to desk 1` (renamed in ALFWorld 0.4); other texts as they are."""
    command = command.strip()
    into = _INTO.search(command, len(_PUT) + 1) if command.startswith(_PUT) else None
    return f"move {command[len(_PUT) : into.start()]} to {command[into.end() :]}" if into else command


def _folders(row: Published) -> tuple[str, ...]:
    """Return the folders of the game that a row names."""
    path = PurePosixPath(row.task.replace("\\", "/"))
    return path.parts[:-1] if path.suffix else path.parts
