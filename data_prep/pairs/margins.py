"""Try what an action would have done: replay expert trajectories in the real environment and branch at every state.

Each trajectory is replayed once. With snapshots, a try costs one action per candidate; without them, the episode is
replayed from the start. A replay that differs from the recorded trajectory raises an error, so an action is never
judged in the wrong state.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from verl_act.envs.base import Environment, Observation, PlanningEnvironment, SnapshotEnvironment, StepResult, Task
from verl_act.envs.process_pool import Failure, close_env, failed, process_pool
from verl_act.envs.registry import get_env
from verl_act.errors import DataError, EnvError
from verl_act.journal import SavedResults
from verl_act.schema import Step
from verl_act.settings.data import WorkerSettings

logger = logging.getLogger(__name__)

Extra = TypeVar("Extra")
Found = TypeVar("Found")

UNREACHABLE = 1000
"""The margin of an alternative that ends the episode without reaching the goal."""


class ReplayError(EnvError):
    """The environment does not repeat what a trajectory recorded."""


def _leave_out(trajectory_id: str, reason: str, counts: Counter[str], error: Exception | None = None) -> None:
    """Log and count a trajectory whose remaining steps cannot be replayed. `error` is what was raised, if anything."""
    counts["trajectories_not_replayed" if isinstance(error, ReplayError) else "trajectories_failed"] += 1
    logger.warning("Dropped the rest of trajectory %s: %s", trajectory_id, reason)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an action is admissible, and its margin over the expert's (`Pair.margin`)."""

    admissible: bool
    margin: int | None


@dataclass
class TrajectoryReplayer:
    """Replays trajectories in one environment. Close it when done."""

    env: str
    settings: Mapping[str, Any]
    _environment: Environment = field(init=False)
    _observed: Observation | StepResult = field(init=False)
    _tasks: dict[tuple[str, str], Task] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        spec = get_env(self.env)
        spec.check_settings(self.settings)
        self._environment = spec.make(**self.settings)

    def close(self) -> None:
        close_env(self._environment)

    def replay(self, steps: Sequence[Step]) -> Iterator[ReplayedState]:
        """Yield the states of one trajectory in order. Judge actions at a state before advancing to the next.

        Raises `ReplayError` if the environment differs from the recording.
        """
        task = self._task(steps[0])
        played: list[str] | None = None
        for step in steps:
            actions = [turn.action for turn in step.context.history]
            if played is None or actions[: len(played)] != played:
                self._observed = self._environment.reset(task)
                played = []
            for action in actions[len(played) :]:
                self._step(action, step)
            played = actions
            _check_recorded(step, self._observed)
            state = ReplayedState(self._environment, task, step)
            yield state
            state.leave()

    def _step(self, action: str, step: Step) -> None:
        if isinstance(self._observed, StepResult) and self._observed.done:
            raise ReplayError(f"{step.state_id}: the episode ends before this state.")
        self._observed = self._environment.step(action)

    def _task(self, step: Step) -> Task:
        """The task of a step, from the environment's list, which also has its seed."""
        if (step.split, step.task_id) not in self._tasks:
            listed = get_env(self.env).tasks(step.split, **self.settings)
            self._tasks |= {(task.split, task.task_id): task for task in listed}
        try:
            return self._tasks[step.split, step.task_id]
        except KeyError:
            raise DataError(
                f"{step.state_id}: {self.env} has no task {step.task_id!r} in split {step.split!r} with "
                f"{dict(self.settings)}. Pass the settings with which the trajectories were collected."
            ) from None


@dataclass
class TrajectoryReplayers(Generic[Extra, Found]):
    """The replayers of a process, one per environment, created on first use: the base of workers that replay. Close
    them when done.

    A job is the steps of a trajectory, each with what is needed there.
    """

    env_settings: Mapping[str, Any]
    envs: Sequence[str]
    """The environments that `prepare` sets up."""
    _replayers: dict[str, TrajectoryReplayer] = field(init=False, default_factory=dict)

    def get(self, env: str) -> TrajectoryReplayer:
        if env not in self._replayers:
            self._replayers[env] = TrajectoryReplayer(env, self.env_settings)
        return self._replayers[env]

    def found(self, trajectory: Sequence[tuple[Step, Extra]], counts: Counter[str]) -> Iterator[Found]:
        """What a trajectory gives. What it leaves out is added to `counts`, by reason."""
        raise NotImplementedError

    def __call__(self, trajectory: Sequence[tuple[Step, Extra]]) -> tuple[list[Found], Counter[str]]:
        """What a trajectory gives before it fails, if it does."""
        results, counts = list[Found](), Counter[str]()
        try:
            for result in self.found(trajectory, counts):
                results.append(result)
        except Exception as error:
            _leave_out(trajectory[0][0].trajectory_id, failed(self, error).reason, counts, error)
        return results, counts

    def prepare(self) -> None:
        for env in self.envs:
            get_env(env).prepare(**self.env_settings)

    def close(self) -> None:
        for replayer in self._replayers.values():
            replayer.close()
        self._replayers.clear()


def replay_all(
    replayers: TrajectoryReplayers[Extra, Found],
    trajectories: Mapping[str, Sequence[tuple[Step, Extra]]],
    settings: WorkerSettings,
    counts: Counter[str],
    title: str,
    saved: SavedResults[tuple[list[Found], Counter[str]]] | None,
) -> Iterator[tuple[str, list[Found]]]:
    """The name of each trajectory and what it gives, in order; nothing if it takes too long or crashes its process."""
    with process_pool(replayers, settings.workers, settings.task_timeout) as run:
        done = tqdm(run(trajectories.values(), saved), title, len(trajectories), unit="trajectory", mininterval=1.0)
        for name, result in zip(trajectories, done, strict=True):
            if isinstance(result, Failure):
                _leave_out(name, result.reason, counts)
                yield name, []
            else:
                found, left_out = result
                counts.update(left_out)
                yield name, found


class ReplayedState:
    """One state of a replayed trajectory. Any number of actions can be tried from it."""

    def __init__(self, environment: Environment, task: Task, step: Step) -> None:
        self.step = step
        self._environment = environment
        self._task = task
        self._snapshot = environment.snapshot() if isinstance(environment, SnapshotEnvironment) else None
        self._moved = False

    def judge(self, action: str) -> Judgement:
        """Try `action`, starting from this state."""
        if not isinstance(self._environment, PlanningEnvironment):
            return Judgement(self._try(action).admissible, None)
        expert_plan = self._expert_plan  # first: it tries the expert's action
        result, plan = self._plan_after(action)
        # If the episode continues and the planner finds no plan, its search was incomplete: the margin is unknown.
        if expert_plan is None or (plan is None and not result.done):
            return Judgement(result.admissible, None)
        return Judgement(result.admissible, UNREACHABLE if plan is None else plan - expert_plan)

    @cached_property
    def _expert_plan(self) -> int | None:
        return self._plan_after(self.step.action)[1]

    def outcome(self, action: str) -> str:
        """The observation after `action`, starting from this state."""
        return self._try(action).observation

    def leave(self) -> None:
        """Return to this state, so that the trajectory can continue."""
        if not self._moved:
            return
        self._moved = False
        if isinstance(self._environment, SnapshotEnvironment):
            self._environment.restore(self._snapshot)
            return
        observed: Observation | StepResult = self._environment.reset(self._task)
        for turn in self.step.context.history:
            observed = self._environment.step(turn.action)
        _check_recorded(self.step, observed)

    def _plan_after(self, action: str) -> tuple[StepResult, int | None]:
        result = self._try(action)
        assert isinstance(self._environment, PlanningEnvironment)
        return result, 0 if result.success else self._environment.plan_length()

    def _try(self, action: str) -> StepResult:
        self.leave()
        self._moved = True
        return self._environment.step(action)


def _check_recorded(step: Step, observed: Observation | StepResult) -> None:
    """Raise `ReplayError` unless the environment shows what was recorded at `step`."""
    context = step.context
    if (observed.observation, observed.admissible_actions) != (context.observation, context.admissible_actions):
        raise ReplayError(
            f"{step.state_id}: the environment shows {observed.observation!r} instead of the recorded observation."
        )
