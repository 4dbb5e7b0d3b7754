"""How published trajectories are imported into an environment: the base class of `EnvSpec.importer`, and its types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from verl_act.errors import DataError, EmptySplitError, EnvError
from verl_act.schema import Context

if TYPE_CHECKING:
    from verl_act.envs.base import Environment, EnvSpec, Expert, Task


@dataclass(frozen=True, slots=True)
class Published:
    """One published trajectory: what identifies its task, and its actions. `row` is its first row's index in the file,
    `instruction` the first message to the agent, `format_name` the format that its keys indicate, None if that is the
    requested one.
    """

    row: int
    task: str
    instruction: str
    actions: tuple[str, ...]
    thoughts: tuple[str | None, ...]
    format_name: str | None = None


class RowError(ValueError):
    """The reason that a row does not fit its format."""


class RespellError(EnvError):
    """An action of a row has no counterpart in the state that the replay has reached, so the row is rejected.

    `kind` is the category under which it is counted; the message explains it.
    """

    kind: ClassVar[str] = "an action has no counterpart"


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A format of one environment's data alone. Rows that it `matches` are read with it, whichever format is requested.

    `read` takes the row's index and the row, and raises `RowError` for a malformed one.
    """

    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[int, Mapping[str, Any]], Published]


class TrajectoryImporter:
    """Imports rows into one environment: finds their task, respells their actions, judges what holds here.

    By default it knows rows by our task ids and takes actions and thoughts as they are. Subclass it, and override
    what the published rows of your environment need. Worker processes make their own from the spec and the settings.
    """

    formats: ClassVar[Mapping[str, RowFormat]] = MappingProxyType({})
    """Formats besides the general ones, by the name that `--format` takes."""

    def __init__(self, spec: EnvSpec, settings: Mapping[str, Any]) -> None:
        """`settings` are the environment's settings."""
        self.spec = spec
        self.settings = settings

    @classmethod
    def recognizes(cls, row: Published) -> bool | None:
        """Whether the row's actions, first page or id are those of this environment; None if nothing about its rows is
        distinctive. A row that only another environment recognizes is rejected.
        """
        return None

    def is_known_by_start(self, row: Published) -> bool:
        """Whether nothing but the goal and the first observation, in the row's `instruction`, identifies its task.

        Such a row is compared with every task, each of which is started once, instead of passed to `find_tasks`.
        """
        return False

    def find_tasks(self, row: Published) -> Sequence[Task]:
        """The tasks that the row may have been recorded on, the likeliest first; empty if none of ours matches."""
        return [self.tasks_by_id[row.task]] if row.task in self.tasks_by_id else []

    def respell(self, action: str, admissible: Sequence[str], environment: Environment) -> str | None:
        """The environment's wording of an action that is not listed as `admissible`; None to play it as published.

        Quotes and the like around `action` are removed already. Raises `RespellError` if it has no counterpart.
        """
        return None

    def is_inferable(self, task: Task, action: str, context: Context, environment: Environment) -> bool:
        """Whether `action` follows from `context` alone. Called once a step, in the order of the steps.

        By default: whether the default expert, which must not be a privileged one, would take the action and calls it
        inferable; true without an expert.
        """
        if self.expert is None:
            return True
        if not context.history:
            self.expert.reset(task, 0)
        try:
            return self.expert.act(context, environment) == (action, True)
        except EnvError:
            return False

    def holds(self, thought: str, row: Published, goal: str) -> bool:
        """Whether a thought of the row is true for the `goal` that is played here; if not, it is left out."""
        return True

    def hint(self, row: Published, *, task_known: bool) -> str:
        """The setting that may differ from the one the row was made with, for a row that matches no task, or matches
        one (`task_known`) and does not win; "" if there is none.
        """
        return ""

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks of all splits. Raises `DataError` if no split has any."""
        tasks: list[Task] = []
        empty: list[EmptySplitError] = []
        for split in self.spec.splits:
            try:
                tasks += self.spec.tasks(split, **self.settings)
            except EmptySplitError as error:
                empty.append(error)
        if not tasks:
            name, splits = self.spec.name, ", ".join(self.spec.splits)
            raise empty[0] if empty else DataError(f"{name} lists no task in any split ({splits}).")
        return tasks

    @cached_property
    def tasks_by_id(self) -> dict[str, Task]:
        """Task id -> task."""
        return {task.task_id: task for task in self.tasks}

    @cached_property
    def expert(self) -> Expert | None:
        """The environment's default expert."""
        return next((make() for make in self.spec.experts.values()), None)


def list_in(row: Mapping[str, Any], key: str) -> list[Any]:
    """The non-empty list at `key` of a row. Raises `RowError`."""
    if key not in row:
        raise RowError(f"has no {key!r}")
    if not isinstance(row[key], list) or not row[key]:
        raise RowError(f"{key!r} must be a non-empty list, not {row[key]!r:.50}")
    entries: list[Any] = row[key]
    return entries


def texts_in(row: Mapping[str, Any], key: str) -> list[str]:
    """The non-empty list of strings at `key` of a row. Raises `RowError`."""
    texts = list_in(row, key)
    if not all(isinstance(text, str) for text in texts):
        raise RowError(f"{key!r} must be a list of strings")
    return texts
