"""Match published rows to our tasks, respell their actions, and judge which of their thoughts hold here; one entry per
environment.
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
"""Maps a row to the tasks that it may have been recorded on, the likeliest first; empty if none of ours matches."""

Spell = Callable[[str, Sequence[str], Environment], str]
"""Converts an action to the environment's wording, given the admissible actions."""

Holds = Callable[[str, Published, str], bool]
"""Whether a thought of a row is true for the goal that is played here."""

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
    """Return the function that matches rows to tasks: by `task_id` in environments without rules of their own.

    Some rows are identified only by how their task begins. Each task must be started to know its beginning, so these
    rows are compared only with the tasks of `split`, if given; `workers` processes start the tasks, each within
    `task_timeout` seconds. All other rows are looked up in every split.

    Raises `DataError` if no split of the environment has tasks.
    """
    tasks = _all_tasks(env, settings)
    if env not in _FINDERS:
        return _by_id(tasks)
    compared = [task for task in tasks if split in (None, task.split)]
    return _FINDERS[env](tasks, settings, _ByFirstSight(env, settings, compared, workers, task_timeout, journal))


def speller(env: str, settings: Mapping[str, Any]) -> Spell:
    """Return the function that respells actions for `env` in these settings."""
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
    """Return the judge of thoughts for `env`: all hold, except those about a price limit that differs in WebShop."""
    return {"webshop": _holds_in_webshop}.get(env, lambda thought, row, goal: True)


def other_benchmark(env: str, row: Published) -> str | None:
    """Return the benchmark that a row's actions, first page or id indicate, if it is not `env`.

    None if nothing indicates one, and for environments whose rows have no distinctive form.
    """
    looks_like = _benchmark_of(row) if env in _FINDERS else None
    return looks_like if looks_like != env else None


def _benchmark_of(row: Published) -> str | None:
    instruction = row.instruction.lower()
    if (
        any(undecorated(action).lower().startswith(("search[", "click[")) for action in row.actions)
        or "[sep]" in instruction
    ):
        return "webshop"
    if "you are in the middle of a room" in instruction or row.task.endswith(".tw-pddl"):
        return "alfworld"
    if "this room is called" in instruction:
        return "scienceworld"
    numbered = _NUMBERED.fullmatch(row.task)
    name = numbered[1].lower() if numbered else ""
    return name.replace("sciworld", "scienceworld") if name in _NAMES_IN_IDS else None


def advice(env: str, settings: Mapping[str, Any], row: Published, *, task_known: bool, split: str | None = None) -> str:
    """Return a hint on why `row` matches no task, or matches one (`task_known`) and does not win; "" if there is none.
    `split` is the split whose tasks the row was compared with, None for all.
    """
    by_start = split is not None and not task_known and _known_by_sight(env, row)
    hints = [f"compared with tasks of {split} only"] if by_start else []
    if hint := _setting_hint(env, settings, row, task_known=task_known):
        hints.append(hint)
    return "; ".join(hints)


def _setting_hint(env: str, settings: Mapping[str, Any], row: Published, *, task_known: bool) -> str:
    """Name the setting that may differ from the one that the row was made with."""
    if env == "scienceworld" and (task_known or not row.task):
        from verl_act.envs.scienceworld.data import EASY

        used = settings.get("simplification", EASY)
        other = json.dumps({"simplification": "" if used else EASY})
        return (
            f"replayed with the simplification {used!r}: pass the one that the data were made with, such as "
            f"--env-settings '{other}'"
        )
    if env == "webshop" and not task_known:
        used = settings.get("goals", "human")
        other = json.dumps({"goals": "human" if used == "synthetic" else "synthetic"})
        return (
            f"searched among the {used} goals: rows of the other kind need --env-settings '{other}', and every row "
            "needs the catalogue that it was made with"
        )
    return ""


def _all_tasks(env: str, settings: Mapping[str, Any]) -> list[Task]:
    """Return the tasks of all splits that have any."""
    spec = get_env(env)
    tasks: list[Task] = []
    empty: list[EmptySplitError] = []
    for split in spec.splits:
        try:
            tasks += spec.tasks(split, **settings)
        except EmptySplitError as error:
            empty.append(error)
    if not tasks:
        raise empty[0] if empty else DataError(f"{env} lists no task in any split ({', '.join(spec.splits)}).")
    return tasks


def _by_id(tasks: Sequence[Task]) -> FindTasks:
    known = {task.task_id: task for task in tasks}
    return lambda row: [known[row.task]] if row.task in known else []


class _Starter(Player[Task, tuple[str, str]]):
    """Starts a task and returns its goal and first observation."""

    def __call__(self, job: Task) -> tuple[str, str]:
        first = self.environments[0].reset(job)
        return _one_line(first.goal), _one_line(first.observation)


class _ByFirstSight:
    """Finds the tasks whose goal and first observation a text contains. At the first call every task is started once,
    by `workers` processes, whose count does not change the result.
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

    def __call__(self, prompt: str) -> list[Task]:
        text = _one_line(prompt)
        return [task for goal, observation, task in self._starts if goal in text and observation in text]

    @cached_property
    def _starts(self) -> list[tuple[str, str, Task]]:
        starts = []
        with process_pool(_Starter(self._env, self._settings), self._workers, self._task_timeout) as start:
            saved = None
            if self._journal is not None:
                saved = SavedResults[tuple[str, str]](self._journal, hash_of(self._tasks), tuple[str, str])
            observations = tqdm(start(self._tasks, saved), "starting tasks", len(self._tasks), unit="task")
            for task, first in zip(self._tasks, observations, strict=True):
                if isinstance(first, Failure):
                    logger.warning("Not comparing rows with a task that does not start: %s", first.reason)
                else:
                    starts.append((*first, task))
        return starts


def _one_line(text: str) -> str:
    return " ".join(text.lower().split())


def _known_by_sight(env: str, row: Published) -> bool:
    """Whether a row's task is identified only by how it begins."""
    if env == "alfworld":
        return len(_folders(row)) < 2
    return env == "scienceworld" and not row.task


def _folders(row: Published) -> tuple[str, ...]:
    """Return the folders of the game that a row names."""
    path = PurePosixPath(row.task.replace("\\", "/"))
    return path.parts[:-1] if path.suffix else path.parts


def _alfworld(tasks: Sequence[Task], _: Mapping[str, Any], by_sight: _ByFirstSight) -> FindTasks:
    by_path: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_path["/".join(PurePosixPath(task.task_id).parts[-2:])].append(task)

    def find(row: Published) -> Sequence[Task]:
        if _known_by_sight("alfworld", row):  # an index, such as AgentGym's `alfworld_0`, or nothing
            return by_sight(row.instruction) if row.instruction else ()
        return by_path.get("/".join(_folders(row)[-2:]), ())

    return find


def _scienceworld(tasks: Sequence[Task], _: Mapping[str, Any], by_sight: _ByFirstSight) -> FindTasks:
    from verl_act.envs.scienceworld.data import VARIATIONS

    by_id = {task.task_id: task for task in tasks}
    agentgym_ids = [
        f"{name}/{variation}"
        for name, variations in VARIATIONS.items()
        if not name.startswith(_NOT_IN_AGENTGYM)
        for variation in range(variations)
    ]

    def find(row: Published) -> Sequence[Task]:
        if _known_by_sight("scienceworld", row):
            return by_sight(row.instruction)
        name = row.task
        if (numbered := _SCIENCEWORLD_ID.fullmatch(name)) and int(numbered[1]) < len(_SCIENCEWORLD_TASKS):
            name = f"{_SCIENCEWORLD_TASKS[int(numbered[1])]}/{numbered[2]}"
        elif (numbered := _AGENTGYM_ID.fullmatch(name)) and int(numbered[1]) < len(agentgym_ids):
            name = agentgym_ids[int(numbered[1])]
        return [by_id[name]] if name in by_id else []

    return find


def _webshop(tasks: Sequence[Task], settings: Mapping[str, Any], _: _ByFirstSight) -> FindTasks:
    from verl_act.envs.webshop.catalogue import load_catalogue
    from verl_act.envs.webshop.goals import list_goals

    by_id = {task.task_id: task for task in tasks}
    goals = list_goals(load_catalogue(settings.get("data")), settings.get("goals", "human"))
    by_instruction: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_instruction[_instruction_key(goals[int(task.task_id.partition("-")[0])].instruction)].append(task)

    def find(row: Published) -> Sequence[Task]:
        if row.task in by_id:
            return [by_id[row.task]]
        matches = by_instruction.get(_instruction_key(row.instruction), [])
        # ETO's ids are goal indices: of several goals with the same instruction, that one comes first.
        return sorted(matches, key=lambda task: task.task_id.partition("-")[0] != row.task)

    return find


def _instruction_key(text: str) -> str:
    """Return an instruction without the page around it and without its price limit, which WebShop samples at random."""
    from verl_act.envs.webshop.instruction import without_limit

    return without_limit(_instruction(text)).strip(" .").lower()


def _instruction(text: str) -> str:
    """Return an instruction without the page around it."""
    text = _BEFORE_INSTRUCTION.split(text, maxsplit=1)[-1]
    lines = [line.strip() for line in re.split(r"\[SEP\]|\n", text)]
    return next((line for line in lines if line), "").strip(" .")


def _holds_in_webshop(thought: str, row: Published, goal: str) -> bool:
    """Whether the thought does not name a price limit of the row that differs from the one of `goal`."""
    from verl_act.envs.webshop.instruction import price_limit

    row_limit = price_limit(_instruction(row.instruction))
    return row_limit in (None, price_limit(goal)) or row_limit not in map(float, _NUMBER.findall(thought))


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
