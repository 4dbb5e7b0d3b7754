"""The environment protocol that rollouts, margins and evaluation use.

An environment is text in, text out. It is deterministic: the same task and actions give the same transcript on every
machine. It reports whether an action was admissible and whether the goal was met. Reaching the step limit ends an
episode without success.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from verl_act.envs.dialect import Dialect
from verl_act.envs.importer import TrajectoryImporter
from verl_act.errors import ConfigError, DataError, EnvError
from verl_act.schema import ENV_NAME, TASK, Context, is_env_name, read_table

if TYPE_CHECKING:
    from verl_act.manifest import Manifest
    from verl_act.settings.data import GamesSettings

ASSETS = Path(__file__).resolve().parent.parent / "assets"  # with the embedded models of this package

# Time limit of `EnvSpec.prepare`: WebShop's full catalogue takes minutes, more on a slow disk or when waiting for
# another process.
PREPARE_SECONDS = 3600.0


class NoRoom(EnvError):
    """The process has no capacity for another episode; a process that plays fewer may have.

    Callers do not retry in the same process: that would take memory from its other episodes.
    """


class ExpertGaveUp(EnvError):
    """The expert has no further action, so it loses the episode. This is not a failure of the environment."""


@dataclass(frozen=True, slots=True)
class Task:
    """One game or variation to play, with the seed of the engine's random choices.

    Environments build file names from `split` and `task_id`, and task files are untrusted input: a name that leads out
    of the data folder raises `EnvError`.
    """

    env: str
    split: str
    task_id: str
    task_type: str
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("env", "split", "task_id", "task_type"):
            if not isinstance(getattr(self, name), str):
                raise EnvError(f"{self!r:.1000}: {name} must be a string.")
        for name, value in (("split", self.split), ("task_id", self.task_id)):
            if not value or "\0" in value or value[0] in "/\\" or ".." in re.split(r"[/\\]", value):
                raise EnvError(
                    f"{self!r:.1000}: the {name} must be a name or a relative path without '..' parts, not "
                    f"{value!r:.200}. List the tasks again (`verl-act data tasks`)."
                )


def read_tasks(path: str | os.PathLike[str]) -> list[Task]:
    """Read the tasks in a file of schema TASK. Raises `DataError` that names the file and the invalid row."""
    tasks = []
    for index, row in enumerate(read_table(path, TASK).to_pylist()):
        try:
            tasks.append(Task(**row))
        except EnvError as error:
            raise DataError(f"{path}: row {index}: {error}") from error
    return tasks


@dataclass(frozen=True, slots=True)
class Observation:
    """The result of `reset`."""

    goal: str
    observation: str
    admissible_actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of `step`.

    `admissible` refers to the action just taken. `success` is true only if the goal is met; at the step limit `done` is
    true and `success` is false.
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
        """Start `task`. Raises `EnvError` if it cannot be loaded, `NoRoom` if the process has no capacity for it."""
        ...

    def step(self, action: str) -> StepResult:
        """Take `action` (any text). An inadmissible action gets an answer and a flag, never an exception."""
        ...

    def close(self) -> None:
        """Free the engine's resources. Calling it twice is harmless."""
        ...


@runtime_checkable
class PlanningEnvironment(Environment, Protocol):
    """An environment whose engine knows the distance to the goal (privileged: never shown to a model)."""

    def plan_length(self) -> int | None:
        """Number of actions that the planner needs from the current state; None if it finds no way to the goal.

        After the end of an episode, None means that there is no way. Before, it means that the planner has not searched
        everything.
        """
        ...


@runtime_checkable
class SnapshotEnvironment(Environment, Protocol):
    """An environment that can return to an earlier state of its episode at a lower cost than a replay."""

    def snapshot(self) -> Any:
        """The current state; valid until the next `reset`."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Return to `snapshot`."""
        ...


@runtime_checkable
class ReleasingEnvironment(Environment, Protocol):
    """An environment whose episode holds resources to free between episodes, such as a game in another process."""

    def release(self) -> None:
        """Free the episode's resources. The pool calls it between two episodes; `reset` or `close` follows."""
        ...


class Expert(Protocol):
    """Chooses expert actions, the same ones for the same task and seed."""

    def reset(self, task: Task, seed: int) -> None:
        """Called with each task before its first `act`. `seed` is the seed of the stage, for random choices."""
        ...

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        """The action, and whether it is inferable: whether the expert's rules determine it from `context` alone.

        A non-privileged expert uses `context` only; a privileged one may query `environment`. Raises `ExpertGaveUp` if
        it has no further action.
        """
        ...


@runtime_checkable
class TyingExpert(Expert, Protocol):
    """An expert that samples its action where its rules rank several equal (see `verl_act.envs.ties`)."""

    def ties(self, context: Context) -> tuple[str, ...]:
        """The actions from which `act` samples in this state, its own included; empty if it does not sample."""
        ...


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """Everything that the other modules know about one environment; registered with `registry.register_env`."""

    name: str
    make: Callable[..., Environment]
    """Takes the environment's settings as keywords (for ALFWorld: `data`, `max_steps`). The environment that a spec's
    `make` returns has its answers checked (see `checked`)."""
    tasks: Callable[..., Sequence[Task]]
    """Takes a split and the settings; lists its tasks in a fixed order, each once."""
    experts: dict[str, Callable[[], Expert]]
    """Name -> factory; the first is the default."""
    splits: tuple[str, ...]
    lists_all_actions: bool = True
    """False if more actions are admissible than an observation lists, such as free-text searches or paraphrases."""
    always_admissible: Callable[[str], bool] | None = None
    """Whether an action is admissible in every state, from its text alone: rewards and metrics need no episode."""
    prepare: Callable[..., object] = lambda **settings: None
    """Takes the settings and does the slow set-up that a process needs before its first episode. The pool waits for it
    before the time-out of a reset begins."""
    importer: type[TrajectoryImporter] = TrajectoryImporter
    """How published trajectories are imported; the default knows rows by their `task_id`."""
    dialect: Dialect | None = None
    """How `verl-act dev embedded-model` makes a small policy."""
    models: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)
    """Name -> folder of a small policy that comes with the environment; `embedded` is the usual name."""
    make_games: Callable[[GamesSettings, str | os.PathLike[str]], Manifest] | None = None
    """Generates games into a folder, which is then the setting `data`, and writes and returns a manifest. `data games`
    calls it, with counts of splits that the environment has."""
    data_digest: Callable[..., str] | None = None
    """Takes tasks and the settings; a hash of the data that these tasks are played on, the same wherever they lie."""
    doctor: Callable[[], str] | None = None
    """Checks the installation, and returns one line about it. Raises `InstallationError` for a fault, its
    `NotInstalledError` where only something optional is missing."""
    max_episodes: int | None = None
    """Episodes that one process has capacity for; None: no limit of its own."""
    packages: tuple[str, ...] = ()
    """Distributions that decide what a task is, such as the engine. Manifests record their versions, and evaluations
    with different versions do not compare."""

    def __post_init__(self) -> None:
        from verl_act.envs.checked import CheckedMake  # which imports this module

        if not is_env_name(self.name):
            raise ConfigError(f"EnvSpec: name is {self.name!r}; give {ENV_NAME}.")
        if not isinstance(self.make, CheckedMake):
            object.__setattr__(self, "make", CheckedMake(self.name, self.make))

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `ConfigError` for a setting that `make` does not take."""
        parameters = inspect.signature(self.make).parameters
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            return
        for name in settings:
            if name not in parameters:
                raise ConfigError(f"{self.name} has no setting {name!r}; it has {', '.join(parameters)}.")
