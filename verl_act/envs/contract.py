"""Checks of the contract of every environment, to run on your own.

    from verl_act.envs.contract import check_environment
    check_environment(get_env("mine"), split="train", env_settings={...})

A check raises `EnvError` with what went wrong, the task and the step. Exceptions and invalid results of the
environment, its expert and its task list also become `EnvError`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from reprlib import repr as brief  # a value may be of any length
from typing import Any

from verl_act.envs.base import (
    Environment,
    EnvSpec,
    Expert,
    ExpertGaveUp,
    Observation,
    PlanningEnvironment,
    SnapshotEnvironment,
    StepResult,
    Task,
)
from verl_act.envs.checked import CheckedEnvironment
from verl_act.errors import ActError, EnvError
from verl_act.schema import Context, Turn

NONSENSE = ("", " ", "fly to the moon", "\x00\x1b[31m\x7f", "<|im_end|>", "go to " * 200_000, "\ud83e\udd16 \u202e")
"""Actions that no environment accepts, some of them hostile; the long one has more than 1 MB."""

_HORIZON = 2000
"""Steps after which an unfinished game counts as having no step limit."""
_WALK = 200
"""Steps of a random game."""

Transcript = list[Observation | StepResult]


def check_environment(
    spec: EnvSpec, split: str, env_settings: Mapping[str, Any] | None = None, *, tasks: int = 6, seed: int = 0
) -> None:
    """Run every check on `tasks` tasks of `split`. Raises `EnvError` at the first failure."""
    settings = dict(env_settings or {})
    listed = _tasks(spec, split, settings)
    _require(len(set(listed)) == len(listed), f"{spec.name}/{split} lists a task twice")
    _require(len(listed) > 0, f"{spec.name}/{split} lists no task")
    _require(listed == _tasks(spec, split, settings), f"{spec.name}/{split} lists its tasks in a changing order")
    sampled = random.Random(seed).sample(listed, min(tasks, len(listed)))
    with _called(f"{spec.name}: make"):
        environment, other = (_Guarded(spec.make(**settings), spec.name) for _ in range(2))
    try:
        check_expert(spec, environment, sampled, seed)
        for task in sampled:
            check_repeatable(environment, other, task, seed)
            check_nonsense(environment, task)
            check_step_limit(environment, task)
            if isinstance(environment, SnapshotEnvironment):
                check_snapshots(environment, task, seed)
            if isinstance(environment, PlanningEnvironment):
                check_plan_length(environment, task, seed)
        check_independence(environment, other, sampled, seed)
    finally:
        for used in (environment, other):
            used.close()
            used.close()


class _Guarded(CheckedEnvironment):
    """An environment for which every unexpected exception breaks the contract."""

    def _call(self, method: str, *arguments: Any) -> Any:
        rendered = ", ".join(brief(argument) for argument in arguments if not isinstance(argument, Task))
        with _called(f"{self._task_played}: {method}({rendered})"):
            return super()._call(method, *arguments)


@contextmanager
def _called(what: str) -> Iterator[None]:
    try:
        yield
    except ActError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(
            f"The environment breaks its contract. {what} raises {type(error).__name__}: {error}. Only `EnvError` and "
            "its kind may be raised."
        ) from error


def _tasks(spec: EnvSpec, split: str, settings: Mapping[str, Any]) -> list[Task]:
    with _called(f"{spec.name}: listing the tasks of {split!r}"):
        tasks = list(spec.tasks(split, **settings))
    for task in tasks:
        _require(
            isinstance(task, Task) and (task.env, task.split) == (spec.name, split) and type(task.seed) is int,
            f"{spec.name}/{split} lists {brief(task)}; it must list a Task of this environment and split",
        )
    return tasks


def check_expert(spec: EnvSpec, environment: Environment, tasks: Sequence[Task], seed: int) -> None:
    """The default expert wins, its inferable actions are admissible, and a random player is not better.

    A spec without an expert passes.
    """
    if not spec.experts:
        return
    with _called(f"{spec.name}: making the expert"):
        expert = next(iter(spec.experts.values()))()
    won = lucky = 0
    for task in tasks:
        won += _play(expert, environment, task, seed)
        steps = walk(environment, task, seed)[1:]
        lucky += any(step.success for step in steps if isinstance(step, StepResult))
    _require(won > 0, f"{spec.name}: the expert wins none of {len(tasks)} tasks")
    _require(won >= lucky, f"{spec.name}: a random player wins {lucky} of {len(tasks)} tasks, the expert only {won}")


def _play(expert: Expert, environment: Environment, task: Task, seed: int) -> bool:
    """Whether the expert wins."""
    first = environment.reset(task)
    with _called(f"{task}: the expert's reset"):
        expert.reset(task, seed)
    history: list[Turn] = []
    observation, admissible = first.observation, first.admissible_actions
    for _ in range(_HORIZON):
        try:
            with _called(f"{task}, step {len(history)}: the expert"):
                answer = expert.act(Context(first.goal, tuple(history), observation, admissible), environment)
        except ExpertGaveUp:
            return False
        _require(
            isinstance(answer, tuple) and [type(value) for value in answer] == [str, bool],
            f"{task}, step {len(history)}: the expert must return its action, a string, and whether that is inferable, "
            f"a bool; it returns {brief(answer)}",
        )
        action, inferable = answer
        result = environment.step(action)
        _require(
            result.admissible or not inferable,
            f"{task}, step {len(history)}: the expert calls {action!r} inferable, which is not admissible",
        )
        if result.done:
            return result.success
        history.append(Turn(observation, action))
        observation, admissible = result.observation, result.admissible_actions
    raise EnvError(f"{task}: the expert is still playing after {_HORIZON} steps.")


def check_repeatable(environment: Environment, other: Environment, task: Task, seed: int) -> None:
    """The same task and actions give the same transcript, on the same instance and on another."""
    once = walk(environment, task, seed)
    _require(once == walk(environment, task, seed), f"{task}: the same actions gave another transcript after a reset")
    _require(once == walk(other, task, seed), f"{task}: the same actions gave another transcript on another instance")


def check_nonsense(environment: Environment, task: Task) -> None:
    """Any text gets a result. Inadmissible actions are flagged and earn nothing; admissible ones are not flagged.

    The first step may include a reward for the start, whatever the action.
    """
    worth = []
    for action in NONSENSE[:2]:
        environment.reset(task)
        worth.append(environment.step(action).reward)
    _require(worth[0] == worth[1], f"{task}: rewards {NONSENSE[0][:30]!r} or {NONSENSE[1][:30]!r}")
    first = environment.reset(task)
    environment.step(NONSENSE[0])
    for action in NONSENSE:
        result = environment.step(action)
        _require(not result.admissible, f"{task}: accepts {action[:30]!r} as admissible")
        _require(isinstance(result.observation, str), f"{task}: answers {action[:30]!r} with {result.observation!r}")
        _require(result.reward <= 0 and not result.success, f"{task}: rewards {action[:30]!r}")
        if result.done:
            environment.reset(task)
            environment.step(NONSENSE[0])
    environment.reset(task)
    for offered in first.admissible_actions[:1]:
        _require(environment.step(offered).admissible, f"{task}: flags {offered!r}, which it offers")


def check_step_limit(environment: Environment, task: Task) -> None:
    """An episode of an agent that does nothing ends, without success."""
    environment.reset(task)
    for _ in range(_HORIZON):
        result = environment.step(NONSENSE[2])
        if result.done:
            _require(not result.success, f"{task}: doing nothing counts as success")
            return
    raise EnvError(
        f"{task}: no end after {_HORIZON} steps of doing nothing; an episode needs a step limit, here below that."
    )


def check_independence(environment: Environment, other: Environment, tasks: Sequence[Task], seed: int) -> None:
    """Two instances played alternately give the same transcripts as alone."""
    first, second = tasks[0], tasks[-1]
    alone = walk(environment, first, seed), walk(environment, second, seed + 1)
    players = [_Walker(environment, first, seed), _Walker(other, second, seed + 1)]
    while any([player.advance() for player in players]):
        continue
    mixed = tuple(player.transcript for player in players)
    _require(mixed == alone, f"{first}, {second}: interleaved instances disturb each other")


def check_snapshots(environment: SnapshotEnvironment, task: Task, seed: int) -> None:
    """Restoring a snapshot gives the same continuation every time."""
    walker = _Walker(environment, task, seed)
    for _ in range(5):
        walker.advance()
    latest, snapshot = walker.transcript[-1], environment.snapshot()
    if isinstance(latest, StepResult) and latest.done:
        return
    once = {action: environment.step(action) for action in latest.admissible_actions[:1]}
    for action in (*latest.admissible_actions, *once):
        environment.restore(snapshot)
        result = environment.step(action)
        _require(result == once.setdefault(action, result), f"{task}: {action!r} gave another result after a restore")
    environment.restore(snapshot)
    continued = walk(environment, task, seed, start=walker)
    _require(continued == walk(environment, task, seed), f"{task}: a restored episode continues differently")


def check_plan_length(environment: PlanningEnvironment, task: Task, seed: int) -> None:
    """No action shortens the plan by more than one step, and the plan is empty at the goal.

    A plan length of None is allowed only after the end of the episode.
    """
    walker = _Walker(environment, task, seed)
    before = environment.plan_length()
    while walker.advance():
        after = environment.plan_length()
        last = walker.transcript[-1]
        lost = after is None and isinstance(last, StepResult) and last.done
        _require(
            before is None or lost or (after is not None and after >= before - 1),
            f"{task}: plan length {before} -> {after}",
        )
        before = after
    last = walker.transcript[-1]
    if isinstance(last, StepResult) and last.success:
        _require(environment.plan_length() == 0, f"{task}: plan length {environment.plan_length()} at the goal")


def walk(environment: Environment, task: Task, seed: int, start: _Walker | None = None) -> Transcript:
    """The transcript of a random game. With `start`, finishes that walker's game instead."""
    walker = start or _Walker(environment, task, seed)
    while walker.advance():
        continue
    return walker.transcript


class _Walker:
    """Plays random actions step by step; one in ten is nonsense."""

    def __init__(self, environment: Environment, task: Task, seed: int) -> None:
        self._environment = environment
        self._random = random.Random(seed)
        self.transcript: Transcript = [environment.reset(task)]

    def advance(self) -> bool:
        """Take a step. Returns False if the game is over or too long."""
        latest = self.transcript[-1]
        if len(self.transcript) > _WALK or (isinstance(latest, StepResult) and latest.done):
            return False
        offered = latest.admissible_actions
        action = self._random.choice(offered) if offered and self._random.random() > 0.1 else NONSENSE[2]
        self.transcript.append(self._environment.step(action))
        return True


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise EnvError(f"The environment breaks its contract. {complaint}.")
