"""Replay a published row on the real engine: respell it, replay it, and verify it on a fresh environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from verl_act.data_prep.expert.collect_expert import Dropped, play, replays
from verl_act.data_prep.imports.published_tasks import advice, importer_of, respelled
from verl_act.envs.base import Environment, Task
from verl_act.envs.importer import Published, RespellError, TrajectoryImporter
from verl_act.envs.process_pool import Failure, Player, failed
from verl_act.errors import EnvError
from verl_act.schema import Context, Step


@dataclass(frozen=True, slots=True)
class Replayed:
    """The verified steps of a row, and how many of its thoughts were removed because they do not hold here."""

    steps: list[Step]
    thoughts_left_out: int


Candidates = tuple[Published, Sequence[Task]]
"""A row and the tasks that it may have been recorded on, the likeliest first."""

ReplayResult: TypeAlias = Replayed | Dropped


@dataclass
class RowReplayer(Player[Candidates | Dropped, ReplayResult]):
    """Replays rows. `source` is the source of the steps, unless a row's keys indicate another format."""

    source: str

    @cached_property
    def _importer(self) -> TrajectoryImporter:
        return importer_of(self.env, self.settings)

    def __call__(self, job: Candidates | Dropped) -> ReplayResult:
        """Return the steps on the first task that the row wins, or why it does not win the likeliest one. A row that is
        already rejected is returned unchanged.
        """
        if isinstance(job, Dropped):
            return job
        row, tasks = job
        refusals = []
        for task in tasks:
            result = self._play(row, task)
            if isinstance(result, Replayed):
                return result
            refusals.append(result)
        return refusals[0]

    def _play(self, row: Published, task: Task) -> ReplayResult:
        environment, fresh = self.environments
        follower = _Follower(row.actions, self._importer)
        try:
            try:
                steps = play(environment, follower, task, source=row.format_name or self.source)
            except _ActionsEnd:
                return self._lost(row, "does not reach the goal", _why_not(fresh, task, follower.played))
            alike = not steps[-1].success or replays(fresh, task, steps)
        except RespellError as error:
            return Dropped(error.kind, str(error))
        except Exception as error:
            return self.failed(row, failed(self, error))
        if not steps[-1].success:
            refused = [step.action for step in steps if step.admissible is False]
            ends = f"it ends after {len(steps)} of {len(row.actions)} actions{_refused(refused, len(steps))}"
            return self._lost(row, "does not reach the goal", ends)
        return self._kept(row, steps) if alike else Dropped("replays differently")

    def failed(self, row: Published, failure: Failure) -> Dropped:
        """Return why a row is rejected whose environment failed."""
        return self._lost(row, "cannot be played", failure.reason)

    def _lost(self, row: Published, kind: str, details: str) -> Dropped:
        hint = advice(self._importer, row, task_known=True)
        return Dropped(kind, f"{details} ({hint})" if hint else details)

    def _kept(self, row: Published, steps: Sequence[Step]) -> Replayed:
        holds, goal = self._importer.holds, steps[0].context.goal
        thoughts = [row.thoughts[step.step] for step in steps]
        kept = [None if thought is None or not holds(thought, row, goal) else thought for thought in thoughts]
        left_out = sum(thought is not None for thought in thoughts) - sum(thought is not None for thought in kept)
        verified = [replace(step, thought=thought, verified=True) for step, thought in zip(steps, kept, strict=True)]
        return Replayed(verified, left_out)


class _ActionsEnd(EnvError):
    """A row has no more actions, but its episode is not over."""


@dataclass
class _Follower:
    """An expert that plays a given list of actions."""

    actions: Sequence[str]
    importer: TrajectoryImporter
    played: list[str] = field(default_factory=list)

    def reset(self, task: Task, seed: int) -> None:
        self.played.clear()
        self._task = task

    def act(self, context: Context, environment: Environment) -> tuple[str, bool]:
        if len(context.history) >= len(self.actions):
            raise _ActionsEnd
        published = self.actions[len(context.history)]
        action = respelled(self.importer, published, context.admissible_actions, environment)
        self.played.append(action)
        return action, self.importer.is_inferable(self._task, action, context, environment)


def _why_not(environment: Environment, task: Task, actions: Sequence[str]) -> str:
    """Play a second episode and return why `actions` do not reach the goal."""
    environment.reset(task)
    refused = [action for action in actions if not environment.step(action).admissible]
    if len(refused) == len(actions):
        return f"none of its {len(actions)} actions was admissible, the first {refused[0]!r:.100}"
    return f"its {len(actions)} actions end before the goal{_refused(refused, len(actions))}"


def _refused(actions: Sequence[str], played: int) -> str:
    return f"; {len(actions)} of these {played} were not admissible, the first {actions[0]!r:.100}" if actions else ""
