"""Match published rows to our tasks, and respell their actions, by the rules of the environment's importer."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.imports.published_turns import undecorated
from verl_act.envs.base import Environment, Task
from verl_act.envs.importer import Published, TrajectoryImporter
from verl_act.envs.process_pool import Failure, Player, process_pool
from verl_act.envs.registry import get_env, installed_env, known_envs
from verl_act.journal import Journal, SavedResults, hash_of
from verl_act.parse import match_action
from verl_act.process import TASK_TIMEOUT

logger = logging.getLogger(__name__)

FindTasks = Callable[[Published], Sequence[Task]]
"""Maps a row to the tasks that it may have been recorded on, the likeliest first; empty if none of ours matches."""
_Start = tuple[str, str]

_NUMBERED = re.compile(r"([A-Za-z0-9]+)_\d+")
_OTHER_BENCHMARKS = frozenset(
    (
        *("os", "db", "kg", "mind2web"),  # AgentInstruct
        *("academia", "babyai", "maze", "movie", "sheet", "sqlgym", "textcraft", "todo", "weather", "wordle"),
    )
)
"""Names in ids of AgentInstruct and AgentGym, of benchmarks that are not an environment here."""


def importer_of(env: str, settings: Mapping[str, Any]) -> TrajectoryImporter:
    """Return a new importer for an environment in these settings."""
    spec = get_env(env)
    return spec.importer(spec, settings)


def task_finder(
    env: str,
    settings: Mapping[str, Any],
    *,
    split: str | None = None,
    workers: int = 0,
    task_timeout: float = TASK_TIMEOUT,
    journal: Journal | None = None,
) -> FindTasks:
    """Return the function that matches rows to tasks.

    Some rows are identified only by how their task begins. Each task must be started to know its beginning, so these
    rows are compared only with the tasks of `split`, if given; `workers` processes start the tasks, each within
    `task_timeout` seconds. All other rows are looked up in every split.

    Raises `DataError` if no split of the environment has tasks.
    """
    importer = importer_of(env, settings)
    compared = [task for task in importer.tasks if split in (None, task.split)]

    @cache
    def starts() -> list[tuple[str, str, Task]]:
        """Goal, first observation and task of each task that starts; all are started at the first call."""
        saved = SavedResults[_Start](journal, hash_of(compared), _Start) if journal else None
        started = []
        with process_pool(TaskStarter(env, settings), workers, task_timeout) as start:
            observations = tqdm(start(compared, saved), "starting tasks", len(compared), unit="task")
            for task, first in zip(compared, observations, strict=True):
                if isinstance(first, Failure):
                    logger.warning("Not comparing rows with a task that does not start: %s", first.reason)
                else:
                    started.append((*first, task))
        return started

    def find(row: Published) -> Sequence[Task]:
        if not importer.is_known_by_start(row):
            return importer.find_tasks(row)
        text = _one_line(row.instruction)
        return [task for goal, seen, task in (starts() if text else ()) if goal in text and seen in text]

    return find


def respelled(importer: TrajectoryImporter, action: str, admissible: Sequence[str], environment: Environment) -> str:
    """Return an action in the environment's wording: as it is listed, or else as the importer respells it."""
    plain = undecorated(action)
    if listed := match_action(action, admissible) or match_action(plain, admissible):
        return listed
    respelled = importer.respell(plain, admissible, environment)
    return action if respelled is None else respelled


def other_benchmark(env: str, row: Published) -> str | None:
    """Return the benchmark that a row's actions, first page or id indicate, if it is not `env`.

    None if nothing indicates one, and for environments whose rows have no distinctive form. Of the other environments,
    the installed ones are considered.
    """
    if get_env(env).importer.recognizes(row) is not False:
        return None
    for name in known_envs():
        if (spec := installed_env(name)) and spec.importer.recognizes(row):
            return name
    match = _NUMBERED.fullmatch(row.task)
    return match[1].lower() if match and match[1].lower() in _OTHER_BENCHMARKS else None


def advice(importer: TrajectoryImporter, row: Published, *, task_known: bool, split: str | None = None) -> str:
    """Return a hint on why `row` matches no task, or matches one (`task_known`) and does not win; "" if there is none.
    `split` is the split whose tasks the row was compared with, None for all.
    """
    by_start = split is not None and not task_known and importer.is_known_by_start(row)
    hints = [f"compared with tasks of {split} only"] if by_start else []
    if hint := importer.hint(row, task_known=task_known):
        hints.append(hint)
    return "; ".join(hints)


class TaskStarter(Player[Task, _Start]):
    """Starts a task and returns its goal and first observation, each on one line in lower case."""

    def __call__(self, job: Task) -> _Start:
        first = self.environments[0].reset(job)
        return _one_line(first.goal), _one_line(first.observation)


def _one_line(text: str) -> str:
    return " ".join(text.lower().split())
