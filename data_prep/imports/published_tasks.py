"""Which of our tasks a published row plays, how its actions are spelled today, and which of its thoughts hold here; one
entry per environment.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.imports.command_spelling import modern_command, modern_scienceworld_action
from verl_act.data_prep.imports.published import Published
from verl_act.data_prep.imports.published_turns import undecorated
from verl_act.data_prep.imports.webshop_titles import click_by_title, title_clicked
from verl_act.data_prep.process_pool import Failure, Player, process_pool
from verl_act.envs.base import Environment, Task
from verl_act.envs.registry import get_env
from verl_act.errors import DataError, EmptySplitError
from verl_act.journal import Journal, SavedResults, hash_of
from verl_act.parse import match_action
from verl_act.process import TASK_TIMEOUT

logger = logging.getLogger(__name__)

FindTasks = Callable[[Published], Sequence[Task]]
"""The tasks that a row may be about, the likeliest first; none where it is about no task of these data."""

Spell = Callable[[str, Sequence[str], Environment], str]
"""An action in the environment's own wording, given the admissible ones."""

Holds = Callable[[str, Published, str], bool]
"""Whether a thought of a row is true of the goal that is played here."""

_SCIENCEWORLD_ID = re.compile(r"(\d{1,6})[_-](\d{1,6})")
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
# AgentGym counts the variations of the tasks in the engine's order, without these.
_NOT_IN_AGENTGYM = ("grow-", "inclined-plane-", "mendelian-genetics-")
_BEFORE_INSTRUCTION = re.compile(r"Instruction:|Your task is to:")
_AGENTGYM_ID = re.compile(r"sciworld_(\d{1,6})")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NUMBERED = re.compile(r"([A-Za-z0-9]+)_\d+")
_NAMES_IN_IDS = frozenset(
    (
        *("alfworld", "webshop", "sciworld", "os", "db", "kg", "mind2web"),  # AgentInstruct, AgentGym
        *("academia", "babyai", "maze", "movie", "sheet", "sqlgym", "textcraft", "todo", "weather", "wordle"),
    )
)


def task_finder(
    env: str,
    settings: Mapping[str, Any],
    *,
    split: str | None = None,
    workers: int = 0,
    task_timeout: float = TASK_TIMEOUT,
    journal: Journal | None = None,
) -> FindTasks:
    """How rows find their tasks: in an environment without rules of its own, by their `task_id`.

    Rows that are known only by how their task begins are compared with the tasks of `split` alone, where one is given:
    to know how a task begins it must be started, which `workers` processes share, each start within `task_timeout`
    seconds. All other rows are looked for in every split, since that costs nothing.

    Raises `DataError` where no split of the environment has tasks.
    """
    tasks = _all_tasks(env, settings)
    if env not in _FINDERS:
        return _by_id(tasks)
    compared = [task for task in tasks if split in (None, task.split)]
    return _FINDERS[env](tasks, settings, _ByFirstSight(env, settings, compared, workers, task_timeout, journal))


def speller(env: str, settings: Mapping[str, Any]) -> Spell:
    """How actions are respelled for `env` in these settings."""
    spellers: dict[str, Spell] = {
        "alfworld": _spell_alfworld,
        "scienceworld": _spell_scienceworld,
        "webshop": partial(_spell_webshop, settings),
    }
    spell = spellers.get(env)

    def respelled(action: str, admissible: Sequence[str], environment: Environment) -> str:
        plain = undecorated(action)
        if listed := match_action(action, admissible) or match_action(plain, admissible):
            return listed
        return spell(plain, admissible, environment) if spell else action

    return respelled


def thought_judge(env: str) -> Holds:
    """Which thoughts hold for `env`; all, but for those on a price limit that WebShop drew otherwise."""
    return {"webshop": _holds_in_webshop}.get(env, lambda thought, row, goal: True)


def other_benchmark(env: str, row: Published) -> str | None:
    """The benchmark that a row looks like where that is not `env`: by its actions, its first page, or its id.

    None where nothing says, and for an environment whose rows have no look of their own.
    """
    looks_like = _benchmark_of(row) if env in _FINDERS else None
    return looks_like if looks_like != env else None


def _benchmark_of(row: Published) -> str | None:
    told = row.instruction.lower()
    if any(undecorated(action).lower().startswith(("search[", "click[")) for action in row.actions) or "[sep]" in told:
        return "webshop"
    if "you are in the middle of a room" in told or row.task.endswith(".tw-pddl"):
        return "alfworld"
    if "this room is called" in told:
        return "scienceworld"
    numbered = _NUMBERED.fullmatch(row.task)
    name = numbered[1].lower() if numbered else ""
    return name.replace("sciworld", "scienceworld") if name in _NAMES_IN_IDS else None


def advice(env: str, settings: Mapping[str, Any], row: Published, *, found: bool, split: str | None = None) -> str:
    """What to look at where `row` finds no task, or was `found` and does not win; empty where there is nothing.
    `split` is the one whose tasks it was compared with, None for all.
    """
    told = [] if found or split is None or not _known_by_sight(env, row) else [f"compared with tasks of {split} only"]
    if setting := _setting(env, settings, row, found=found):
        told.append(setting)
    return "; ".join(told)


def _setting(env: str, settings: Mapping[str, Any], row: Published, *, found: bool) -> str:
    """The setting that may be another one than that of the row."""
    if env == "scienceworld" and (found or not row.task):
        from verl_act.envs.scienceworld.data import EASY

        used = settings.get("simplification", EASY)
        other = json.dumps({"simplification": "" if used else EASY})
        return (
            f"played here with the simplification {used!r}: data made with another one need it, such as "
            f"--env-settings '{other}'"
        )
    if env == "webshop" and not found:
        used = settings.get("goals", "human")
        other = json.dumps({"goals": "human" if used == "synthetic" else "synthetic"})
        return (
            f"looked for among the {used} goals: rows of the others need --env-settings '{other}', and all rows the "
            "catalogue that they were made with"
        )
    return ""


def _all_tasks(env: str, settings: Mapping[str, Any]) -> list[Task]:
    """Of every split that has any."""
    spec = get_env(env)
    found: list[Task] = []
    empty: list[EmptySplitError] = []
    for split in spec.splits:
        try:
            found += spec.tasks(split, **settings)
        except EmptySplitError as error:
            empty.append(error)
    if not found:
        raise empty[0] if empty else DataError(f"{env} lists no task in any split ({', '.join(spec.splits)}).")
    return found


def _by_id(tasks: Sequence[Task]) -> FindTasks:
    known = {task.task_id: task for task in tasks}
    return lambda row: [known[row.task]] if row.task in known else []


class _Starter(Player[Task, tuple[str, str]]):
    """Starts tasks: their goal and first observation."""

    def __call__(self, job: Task) -> tuple[str, str]:
        first = self.environments[0].reset(job)
        return _one_line(first.goal), _one_line(first.observation)


class _ByFirstSight:
    """Finds tasks by a text that holds their goal and first observation; to know these, each task is started once, at
    the first text. `workers` processes share that and do not change what is found.
    """

    def __init__(
        self,
        env: str,
        settings: Mapping[str, Any],
        tasks: Sequence[Task],
        workers: int,
        task_timeout: float,
        journal: Journal | None,
    ) -> None:
        self._env, self._settings, self._tasks = env, settings, tasks
        self._workers, self._task_timeout, self._journal = workers, task_timeout, journal

    def __call__(self, told: str) -> list[Task]:
        text = _one_line(told)
        return [task for goal, seen, task in self._starts if goal in text and seen in text]

    @cached_property
    def _starts(self) -> list[tuple[str, str, Task]]:
        starts = []
        with process_pool(_Starter(self._env, self._settings), self._workers, self._task_timeout) as start:
            saved = None
            if self._journal is not None:
                saved = SavedResults[tuple[str, str]](self._journal, hash_of(self._tasks), tuple[str, str])
            begun = tqdm(start(self._tasks, saved), "reading how tasks begin", len(self._tasks), unit="task")
            for task, first in zip(self._tasks, begun, strict=True):
                if isinstance(first, Failure):
                    logger.warning("Rows are not compared with a task that does not start: %s", first.reason)
                else:
                    starts.append((*first, task))
        return starts


def _one_line(text: str) -> str:
    return " ".join(text.lower().split())


def _known_by_sight(env: str, row: Published) -> bool:
    """Whether nothing tells the task of a row but how it begins."""
    if env == "alfworld":
        return len(_folders(row)) < 2
    return env == "scienceworld" and not row.task


def _folders(row: Published) -> tuple[str, ...]:
    """Those of the game that a row names."""
    path = PurePosixPath(row.task.replace("\\", "/"))
    return path.parts[:-1] if path.suffix else path.parts


def _alfworld(tasks: Sequence[Task], _: Mapping[str, Any], by_sight: _ByFirstSight) -> FindTasks:
    by_path: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_path["/".join(PurePosixPath(task.task_id).parts[-2:])].append(task)

    def find(row: Published) -> Sequence[Task]:
        if _known_by_sight("alfworld", row):  # no path but a number of theirs, as AgentGym's `alfworld_0`, or nothing
            return by_sight(row.instruction) if row.instruction else ()
        return by_path.get("/".join(_folders(row)[-2:]), ())

    return find


def _scienceworld(tasks: Sequence[Task], _: Mapping[str, Any], by_sight: _ByFirstSight) -> FindTasks:
    from verl_act.envs.scienceworld.data import VARIATIONS

    by_id = {task.task_id: task for task in tasks}
    counted = [
        f"{name}/{number}"
        for name, variations in VARIATIONS.items()
        if not name.startswith(_NOT_IN_AGENTGYM)
        for number in range(variations)
    ]

    def find(row: Published) -> Sequence[Task]:
        if _known_by_sight("scienceworld", row):
            return by_sight(row.instruction)
        name = row.task
        if (numbered := _SCIENCEWORLD_ID.fullmatch(name)) and int(numbered[1]) < len(_SCIENCEWORLD_TASKS):
            name = f"{_SCIENCEWORLD_TASKS[int(numbered[1])]}/{numbered[2]}"
        elif (numbered := _AGENTGYM_ID.fullmatch(name)) and int(numbered[1]) < len(counted):
            name = counted[int(numbered[1])]
        return [by_id[name]] if name in by_id else []

    return find


def _webshop(tasks: Sequence[Task], settings: Mapping[str, Any], _: _ByFirstSight) -> FindTasks:
    from verl_act.envs.webshop.catalogue import load_catalogue
    from verl_act.envs.webshop.goals import list_goals

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
    from verl_act.envs.webshop.instruction import without_limit

    return without_limit(_instruction(text)).strip(" .").lower()


def _instruction(text: str) -> str:
    """An instruction without the page around it."""
    text = _BEFORE_INSTRUCTION.split(text, maxsplit=1)[-1]
    parts = [part.strip() for part in re.split(r"\[SEP\]|\n", text)]
    return next((part for part in parts if part), "").strip(" .")


def _holds_in_webshop(thought: str, row: Published, goal: str) -> bool:
    """Not where the row was told another price limit and the thought names it: here it would be untrue."""
    from verl_act.envs.webshop.instruction import price_limit

    theirs = price_limit(_instruction(row.instruction))
    return theirs in (None, price_limit(goal)) or theirs not in map(float, _NUMBER.findall(thought))


_FINDERS: dict[str, Callable[[Sequence[Task], Mapping[str, Any], _ByFirstSight], FindTasks]] = {
    "alfworld": _alfworld,
    "scienceworld": _scienceworld,
    "webshop": _webshop,
}


def _spell_alfworld(action: str, admissible: Sequence[str], environment: Environment) -> str:
    modern = modern_command(action)
    return match_action(modern, admissible) or modern


def _spell_scienceworld(action: str, admissible: Sequence[str], environment: Environment) -> str:
    from verl_act.envs.scienceworld.environment import ScienceWorldEnvironment

    assert isinstance(environment, ScienceWorldEnvironment)
    name, possible = environment.reading(action)
    return name if possible else environment.reading(modern_scienceworld_action(action))[0]


def _spell_webshop(
    settings: Mapping[str, Any], action: str, admissible: Sequence[str], environment: Environment
) -> str:
    title = title_clicked(action)
    return action if title is None else click_by_title(title, environment, settings)
