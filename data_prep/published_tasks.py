"""Which of our tasks a published row plays, and how its actions are spelled today; one entry per environment."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from verl_act.data_prep.import_commands import modern_command
from verl_act.data_prep.published import Published
from verl_act.envs.base import Environment, Task
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, DataError
from verl_act.parse import match_action

FindTasks = Callable[[Published], Sequence[Task]]
"""The tasks that a row may be about, the likeliest first; none where it is about no task of these data."""

Spell = Callable[[str, Sequence[str], Environment], str]
"""An action in the environment's own wording, given the admissible ones."""

_SCIENCEWORLD_ID = re.compile(r"(\d+)[_-](\d+)")
# ETO numbers the tasks by the names of ScienceWorld's first version.
_SCIENCEWORLD_TASKS = (
    "boil",
    "change-the-state-of-matter-of",
    "freeze",
    "melt",
    "measure-melting-point-known-substance",
    "measure-melting-point-unknown-substance",
    "use-thermometer",
    "power-component",
    "power-component-renewable-vs-nonrenewable-energy",
    "test-conductivity",
    "test-conductivity-of-unknown-substances",
    "find-animal",
    "find-living-thing",
    "find-non-living-thing",
    "find-plant",
    "grow-fruit",
    "grow-plant",
    "chemistry-mix",
    "chemistry-mix-paint-secondary-color",
    "chemistry-mix-paint-tertiary-color",
    "lifespan-longest-lived",
    "lifespan-longest-lived-then-shortest-lived",
    "lifespan-shortest-lived",
    "identify-life-stages-1",
    "identify-life-stages-2",
    "inclined-plane-determine-angle",
    "inclined-plane-friction-named-surfaces",
    "inclined-plane-friction-unnamed-surfaces",
    "mendelian-genetics-known-plant",
    "mendelian-genetics-unknown-plant",
)
_PRICE = re.compile(r",? and price lower than [\d.]+ dollars\s*$")


def task_finder(env: str, settings: Mapping[str, Any]) -> FindTasks:
    """How rows find their tasks. Raises `ConfigError` for an environment whose published data are unknown."""
    if env not in _FINDERS:
        raise ConfigError(f"there is no importer for {env!r}; there are {', '.join(_FINDERS)}.")
    return _FINDERS[env](settings)


def speller(env: str) -> Spell:
    """How actions are respelled for `env`."""
    return {"alfworld": _spell_alfworld, "scienceworld": _spell_scienceworld}.get(env, _spell_as_listed)


def _all_tasks(env: str, settings: Mapping[str, Any]) -> list[Task]:
    """Of every split that is there."""
    spec = get_env(env)
    found: list[Task] = []
    for split in spec.splits:
        try:
            found += spec.tasks(split, **settings)
        except DataError:
            continue
    return found


def _alfworld(settings: Mapping[str, Any]) -> FindTasks:
    by_path: dict[str, list[Task]] = defaultdict(list)
    for task in _all_tasks("alfworld", settings):
        by_path["/".join(PurePosixPath(task.task_id).parts[-2:])].append(task)

    def find(row: Published) -> Sequence[Task]:
        path = PurePosixPath(row.task.replace("\\", "/"))
        parts = path.parts[:-1] if path.suffix else path.parts
        return by_path.get("/".join(parts[-2:]), ())

    return find


def _scienceworld(settings: Mapping[str, Any]) -> FindTasks:
    by_id = {task.task_id: task for task in _all_tasks("scienceworld", settings)}

    def find(row: Published) -> Sequence[Task]:
        name = row.task
        numbered = _SCIENCEWORLD_ID.fullmatch(name)
        if numbered and int(numbered[1]) < len(_SCIENCEWORLD_TASKS):
            name = f"{_SCIENCEWORLD_TASKS[int(numbered[1])]}/{numbered[2]}"
        return [by_id[name]] if name in by_id else []

    return find


def _webshop(settings: Mapping[str, Any]) -> FindTasks:
    from verl_act.envs.webshop.catalogue import load_catalogue
    from verl_act.envs.webshop.goals import list_goals

    tasks = _all_tasks("webshop", settings)
    by_id = {task.task_id: task for task in tasks}
    goals = list_goals(load_catalogue(settings.get("data")), settings.get("goals", "human"))
    by_instruction: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_instruction[_asked(goals[int(task.task_id.partition("-")[0])].instruction)].append(task)

    def find(row: Published) -> Sequence[Task]:
        if row.task in by_id:
            return [by_id[row.task]]
        found = by_instruction.get(_asked(row.instruction), [])
        # ETO's ids are the numbers of goals: of several with the same instruction, that one comes first.
        return sorted(found, key=lambda task: task.task_id.partition("-")[0] != row.task)

    return find


def _asked(text: str) -> str:
    """An instruction without its price limit, which WebShop draws at random, and without the page around it."""
    text = text.partition("Instruction:")[2] or text
    parts = [part.strip() for part in re.split(r"\[SEP\]|\n", text)]
    asked = next((part for part in parts if part), "")
    return _PRICE.sub("", asked).strip(" .").lower()


_FINDERS: dict[str, Callable[[Mapping[str, Any]], FindTasks]] = {
    "alfworld": _alfworld,
    "scienceworld": _scienceworld,
    "webshop": _webshop,
}


def _spell_alfworld(action: str, admissible: Sequence[str], environment: Environment) -> str:
    return match_action(action, admissible) or _spell_as_listed(modern_command(action), admissible, environment)


def _spell_scienceworld(action: str, admissible: Sequence[str], environment: Environment) -> str:
    from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment

    assert isinstance(environment, ScienceWorldEnvironment)
    return environment.reading(action)[0]


def _spell_as_listed(action: str, admissible: Sequence[str], environment: Environment) -> str:
    return match_action(action, admissible) or action
