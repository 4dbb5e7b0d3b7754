"""What an action would have done: expert trajectories are replayed in the real environment and left at every state.

Each trajectory is replayed once. An environment that can return to a snapshot is probed with one action a candidate;
any other is played again from the start. A replay that does not show what the trajectory recorded is refused, so a
probe never judges an action in another state than its own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_act.data_prep.process_pool import close_env, prepare_env
from verl_act.envs.base import Environment, Observation, PlanningEnvironment, SnapshotEnvironment, StepResult, Task
from verl_act.envs.registry import get_env
from verl_act.errors import DataError, EnvError
from verl_act.schema import Step

logger = logging.getLogger(__name__)

NO_WAY = 1000
"""The margin of an alternative that ends the episode, with the goal out of reach."""


class ReplayError(EnvError):
    """The environment does not repeat what a trajectory recorded."""


def leave_out(trajectory_id: str, reason: str, counts: Counter[str], error: Exception | None = None) -> None:
    """Take note of a trajectory whose rest cannot be probed, by the `error` that was raised if there was one: one that
    fails costs no other.
    """
    counts["trajectories_not_replayed" if isinstance(error, ReplayError) else "trajectories_failed"] += 1
    logger.warning("Left out the rest of trajectory %s: %s", trajectory_id, reason)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an action is admissible, and its margin over the expert's (`Pair.margin`)."""

    admissible: bool
    margin: int | None


@dataclass
class Prober:
    """One environment and the trajectory it is replaying. Close it when done."""

    env: str
    settings: Mapping[str, Any]
    _environment: Environment = field(init=False)
    _shown: Observation | StepResult = field(init=False)
    _tasks: dict[tuple[str, str], Task] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        spec = get_env(self.env)
        spec.check_settings(self.settings)
        self._environment = spec.make(**self.settings)

    def close(self) -> None:
        close_env(self._environment)

    def replay(self, steps: Sequence[Step]) -> Iterator[State]:
        """The states of one trajectory, in order; judge at each before asking for the next.

        Raises `ReplayError` where the environment shows something else than was recorded.
        """
        task = self._task(steps[0])
        played: list[str] | None = None
        for step in steps:
            wanted = [turn.action for turn in step.context.history]
            if played is None or wanted[: len(played)] != played:
                self._shown = self._environment.reset(task)
                played = []
            for action in wanted[len(played) :]:
                self._take(action, step)
            played = wanted
            _check_shown(step, self._shown)
            state = State(self._environment, task, step)
            yield state
            state.leave()

    def _take(self, action: str, step: Step) -> None:
        if isinstance(self._shown, StepResult) and self._shown.done:
            raise ReplayError(f"{step.state_id}: the episode ends before this state.")
        self._shown = self._environment.step(action)

    def _task(self, step: Step) -> Task:
        """The task of a step: its seed is the environment's to know."""
        if (step.split, step.task_id) not in self._tasks:
            listed = get_env(self.env).tasks(step.split, **self.settings)
            self._tasks |= {(task.split, task.task_id): task for task in listed}
        try:
            return self._tasks[step.split, step.task_id]
        except KeyError:
            raise DataError(
                f"{step.state_id}: {self.env} has no task {step.task_id!r} in split {step.split!r} with "
                f"{dict(self.settings)}. Pass the settings that the trajectories were collected with."
            ) from None


@dataclass
class Probers:
    """A process's probers, each made when first asked for. Close them when done."""

    settings: Mapping[str, Any]
    envs: Sequence[str] = ()
    """Those that `prepare` is for."""
    _made: dict[str, Prober] = field(init=False, default_factory=dict)

    def of(self, env: str) -> Prober:
        if env not in self._made:
            self._made[env] = Prober(env, self.settings)
        return self._made[env]

    def prepare(self) -> None:
        for env in self.envs:
            prepare_env(env, self.settings)

    def close(self) -> None:
        for prober in self._made.values():
            prober.close()
        self._made.clear()


class State:
    """One state of a replayed trajectory, from which any number of actions can be tried."""

    def __init__(self, environment: Environment, task: Task, step: Step) -> None:
        self.step = step
        self._environment = environment
        self._task = task
        self._snapshot = environment.snapshot() if isinstance(environment, SnapshotEnvironment) else None
        self._moved = False
        self._expert_plan: int | None = None
        self._expert_tried = False

    def judge(self, action: str) -> Judgement:
        """Try `action` and come back."""
        if not isinstance(self._environment, PlanningEnvironment):
            return Judgement(self._try(action).admissible, None)
        if not self._expert_tried:
            self._expert_plan = self._plan_after(self.step.action)[1]
            self._expert_tried = True
        result, plan = self._plan_after(action)
        # Where the episode goes on, a planner that finds no way has not looked everywhere: nobody knows the margin.
        if self._expert_plan is None or (plan is None and not result.done):
            return Judgement(result.admissible, None)
        return Judgement(result.admissible, NO_WAY if plan is None else plan - self._expert_plan)

    def outcome(self, action: str) -> str:
        """What the environment shows after `action`; the state itself is returned to before the next one."""
        return self._try(action).observation

    def leave(self) -> None:
        """Return to the state itself, for the trajectory to go on."""
        if self._moved:
            self._return()

    def _plan_after(self, action: str) -> tuple[StepResult, int | None]:
        result = self._try(action)
        assert isinstance(self._environment, PlanningEnvironment)
        return result, 0 if result.success else self._environment.plan_length()

    def _try(self, action: str) -> StepResult:
        self.leave()
        self._moved = True
        return self._environment.step(action)

    def _return(self) -> None:
        self._moved = False
        if isinstance(self._environment, SnapshotEnvironment):
            self._environment.restore(self._snapshot)
            return
        shown: Observation | StepResult = self._environment.reset(self._task)
        for turn in self.step.context.history:
            shown = self._environment.step(turn.action)
        _check_shown(self.step, shown)


def _check_shown(step: Step, shown: Observation | StepResult) -> None:
    """Raise `ReplayError` unless the environment shows what was recorded at `step`."""
    context = step.context
    if (shown.observation, shown.admissible_actions) != (context.observation, context.admissible_actions):
        raise ReplayError(f"{step.state_id}: the environment shows {shown.observation!r} there.")
