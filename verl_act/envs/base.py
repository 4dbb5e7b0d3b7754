"""What an environment is: the protocol that rollouts, probing and evaluation speak.

An environment plays text. It is deterministic given its task: the same task and the same actions give the same
transcript on every machine. It says truthfully whether an action was admissible and whether the goal was met;
running out of steps ends an episode without success.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from verl_act.errors import ConfigError, DataError, EnvError
from verl_act.schema import ENV_NAME, TASK, Context, is_env_name, read_table

_SEPARATORS = ("/", "\\")
_PARTS = re.compile(r"[/\\]")

PREPARE_SECONDS = 3600.0
"""What `EnvSpec.prepare` may take: WebShop's full catalogue takes minutes; on a slow disk, or waiting for another
process, more."""


class NoRoom(EnvError):
    """The process has no room for this episode beside its others; one that plays fewer may have.

    To try again in the same process would cost the others what this one gains, so nobody does.
    """


class ExpertGaveUp(EnvError):
    """An expert knows no further action, so its episode is lost; nothing has failed."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to play: a game or a variation, with the seed of whatever the engine draws.

    Environments make file names of `split` and `task_id`, and tasks come from files that anybody may have written: a
    name that leads out of the data's folder raises `EnvError`.
    """

    env: str
    split: str
    task_id: str
    task_type: str
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("env", "split", "task_id", "task_type"):
            if not isinstance(getattr(self, name), str):
                raise EnvError(f"{self!r:.1000}: {name} must be a text.")
        for name, value in (("split", self.split), ("task_id", self.task_id)):
            if not value or "\0" in value or value.startswith(_SEPARATORS) or ".." in _PARTS.split(value):
                raise EnvError(
                    f"{self!r:.1000}: the {name} must be a name or a relative path without '..' parts, not "
                    f"{value!r:.200}. List the tasks again (`make-tasks`)."
                )


def read_tasks(path: str | os.PathLike[str]) -> list[Task]:
    """The tasks in a file of schema TASK. Raises `DataError` naming the file, and the row that is no task."""
    tasks = []
    for number, row in enumerate(read_table(path, TASK).to_pylist()):
        try:
            tasks.append(Task(**row))
        except EnvError as error:
            raise DataError(f"{path}: row {number}: {error}") from error
    return tasks


@dataclass(frozen=True, slots=True)
class Observation:
    """What `reset` shows."""

    goal: str
    observation: str
    admissible_actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What `step` answers.

    `admissible` is about the action just taken. `success` is true only when the goal is met; at the step limit
    `done` is true and `success` is false.
    """

    observation: str
    admissible_actions: tuple[str, ...]
    reward: float
    done: bool
    success: bool
    admissible: bool


class Environment(Protocol):
    """One episode at a time; `reset` starts the next. Not thread-safe unless an environment says so."""

    def reset(self, task: Task) -> Observation:
        """Start `task`. Raises `EnvError` when the task cannot be loaded, `NoRoom` when others leave no room for it."""
        ...

    def step(self, action: str) -> StepResult:
        """Take `action` (any text; an inadmissible one is answered and flagged, never raised)."""
        ...

    def close(self) -> None:
        """Free what the engine holds. Calling it twice is harmless."""
        ...


@runtime_checkable
class PlanningEnvironment(Environment, Protocol):
    """An environment whose engine knows how far the goal is (privileged: never shown to a model)."""

    def plan_length(self) -> int | None:
        """Actions that the planner needs from the current state; None where it finds no way to the goal.

        In an episode that is over, None means that there is no way; in one that goes on, that the planner has not
        looked everywhere.
        """
        ...


@runtime_checkable
class SnapshotEnvironment(Environment, Protocol):
    """An environment that can return to an earlier state of its current episode for less than a replay costs."""

    def snapshot(self) -> Any:
        """The current state; valid until the next `reset`."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Return to `snapshot`."""
        ...


@runtime_checkable
class ReleasingEnvironment(Environment, Protocol):
    """An environment whose episode holds what another need not wait for, such as a game in another process."""

    def release(self) -> None:
        """Free what the episode holds. The pool calls it between two episodes; `reset` or `close` follows."""
        ...


class Expert(Protocol):
    """Chooses expert actions. `reset` is called with each task before its first `act`."""

    def reset(self, task: Task) -> None: ...

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        """The action, and whether it is inferable (follows from `context` alone).

        A non-privileged expert looks at `context` only; a privileged one may ask `environment`. Raises `ExpertGaveUp`
        where it knows no further action.
        """
        ...


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """How to get at one environment; what a module hands to `registry.register_env`.

    `make` and `tasks` take the environment's own settings as keywords (for ALFWorld: `data`, `max_steps`). `tasks`
    lists a split in a fixed order, every task once. `experts` maps a name to a factory; the first is the default.
    `lists_all_actions` is false where more is admissible than an observation lists: any words can be searched, or a
    listed action can be said in other words. `always_admissible` tells the actions that every state takes, listed or
    not, by their text alone, so that rewards and figures know them without an episode. `prepare` does, with the
    settings, what a process needs before its first episode and what may take minutes: the pool waits for it before the
    time-out of a reset begins.

    What `make` of a spec returns checks the environment's answers (see `checked`).
    """

    name: str
    make: Callable[..., Environment]
    tasks: Callable[..., Sequence[Task]]
    experts: dict[str, Callable[[], Expert]]
    splits: tuple[str, ...]
    lists_all_actions: bool = True
    always_admissible: Callable[[str], bool] | None = None
    prepare: Callable[..., object] | None = None

    def __post_init__(self) -> None:
        from verl_act.envs.checked import CheckedMake  # which imports this module

        if not is_env_name(self.name):
            raise ConfigError(f"EnvSpec: name is {self.name!r}; give {ENV_NAME}.")
        if not isinstance(self.make, CheckedMake):
            object.__setattr__(self, "make", CheckedMake(self.name, self.make))

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `ConfigError` for a setting that `make` does not take."""
        taken = inspect.signature(self.make).parameters
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
            return
        for name in settings:
            if name not in taken:
                raise ConfigError(f"{self.name} has no setting {name!r}; it has {', '.join(taken)}.")


__all__ = [
    "EnvSpec",
    "Environment",
    "Expert",
    "ExpertGaveUp",
    "NoRoom",
    "Observation",
    "PlanningEnvironment",
    "ReleasingEnvironment",
    "SnapshotEnvironment",
    "StepResult",
    "Task",
    "read_tasks",
]
