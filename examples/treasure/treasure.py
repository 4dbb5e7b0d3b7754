"""A complete environment of one's own: find the named treasure in a row of closed boxes, and take it.

`TreasureEnvironment` is the game and `TreasureExpert` plays it. `TreasureImporter`, `DIALECT`, `MODEL` and
`check_tasks` are optional: they serve importing, small policies and the doctor. `SPEC` is what verl_act needs to know
of all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_act.envs.base import Environment, EnvSpec, Observation, StepResult, Task
from verl_act.envs.dialect import Dialect
from verl_act.envs.importer import Published, TrajectoryImporter
from verl_act.envs.ties import TieBreaker
from verl_act.errors import DataError, EnvError
from verl_act.schema import Context

NAME = "treasure"
TREASURES = ("ruby", "pearl", "coin", "ring", "crown", "goblet")
TASKS = {"train": range(200), "test": range(200, 250)}


class TreasureEnvironment:
    """A task is a number, which decides what lies where. Taking the wrong thing ends the episode."""

    def __init__(self, boxes: int = 4, max_steps: int = 12) -> None:
        self._boxes = boxes
        self._max_steps = max_steps
        self._goal = ""

    def reset(self, task: Task) -> Observation:
        rng = random.Random(f"{task.task_id}/{task.seed}")
        self._inside = dict(enumerate(rng.sample(TREASURES, self._boxes), 1))
        self._goal = rng.choice(list(self._inside.values()))
        self._open: set[int] = set()
        self._steps, self._done, self._won = 0, False, False
        return Observation(f"take the {self._goal}", f"You see {self._boxes} closed boxes.", self._admissible())

    def step(self, action: str) -> StepResult:
        if not self._goal:
            raise EnvError("No episode is being played. Call `reset(task)` first.")
        admissible = action in self._admissible()
        text = "Nothing happens."
        if admissible:
            verb, _, thing = action.partition(" ")
            text = self._open_box(int(thing.removeprefix("box "))) if verb == "open" else self._take(thing)
        self._steps += 1
        self._done = self._done or self._steps >= self._max_steps
        return StepResult(text, self._admissible(), float(self._won and admissible), self._done, self._won, admissible)

    def close(self) -> None:
        self._goal = ""

    def snapshot(self) -> Any:
        """With these two, an alternative action is tried in one step instead of replaying the episode."""
        return frozenset(self._open), self._steps, self._done, self._won

    def restore(self, snapshot: Any) -> None:
        opened, self._steps, self._done, self._won = snapshot
        self._open = set(opened)

    def _open_box(self, number: int) -> str:
        self._open.add(number)
        return f"In box {number} lies a {self._inside[number]}."

    def _take(self, thing: str) -> str:
        self._done, self._won = True, thing == self._goal
        return f"You take the {thing}."

    def _admissible(self) -> tuple[str, ...]:
        if self._done:
            return ()
        closed = (f"open box {number}" for number in self._inside if number not in self._open)
        return (*closed, *(f"take {self._inside[number]}" for number in sorted(self._open)))


class TreasureExpert:
    """Acts on the transcript alone, so every label can be judged from it; which box to open next is a guess, sampled by
    task and seed.
    """

    def reset(self, task: Task, seed: int) -> None:
        self._ties = TieBreaker.of(task, seed)

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        best = self._best(context)
        return self._ties.sample(best, len(context.history)), len(best) == 1

    def ties(self, context: Context) -> tuple[str, ...]:
        best = self._best(context)
        return best if len(best) > 1 else ()

    def _best(self, context: Context) -> tuple[str, ...]:
        """The actions that are equally good by what the transcript shows."""
        treasure = f"take {re.sub('^take the ', '', context.goal)}"
        if treasure in context.admissible_actions:
            return (treasure,)
        return tuple(action for action in context.admissible_actions if action.startswith("open"))


def list_tasks(split: str, **settings: Any) -> Sequence[Task]:
    """Every task of `split` once."""
    if split not in TASKS:
        raise DataError(f"{NAME} has no split {split!r}; it has {', '.join(TASKS)}.")
    return [Task(NAME, split, str(number), "boxes") for number in TASKS[split]]


class TreasureImporter(TrajectoryImporter):
    """Published rows count the tasks as `treasure_17`, and say "grab" for "take"."""

    def find_tasks(self, row: Published) -> Sequence[Task]:
        task = self.tasks_by_id.get(row.task.removeprefix("treasure_"))
        return [task] if task else []

    def respell(self, action: str, admissible: Sequence[str], environment: Environment) -> str:
        return action.replace("grab the ", "take ")


DIALECT = Dialect(names=re.compile(r" box \d+| [a-z]{3,}"))
MODEL = Path(__file__).with_name("embedded_model")


def check_tasks() -> str:
    """One line for `verl-act doctor`. Where something is wrong, raise `verl_act.errors.InstallationError`."""
    return ", ".join(f"{split} {len(list_tasks(split))}" for split in TASKS)


SPEC = EnvSpec(
    name=NAME,
    make=TreasureEnvironment,
    tasks=list_tasks,
    experts={"careful": TreasureExpert},
    splits=tuple(TASKS),
    importer=TreasureImporter,
    dialect=DIALECT,
    models={"embedded": MODEL},
    doctor=check_tasks,
)
