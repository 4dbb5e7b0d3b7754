"""What an environment's code may answer, and what of it reaches the rest: plain values, or an error that names it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from verl_act.engine import Sampling
from verl_act.envs.base import (
    Environment,
    EnvSpec,
    Observation,
    PlanningEnvironment,
    ReleasingEnvironment,
    SnapshotEnvironment,
    StepResult,
    Task,
)
from verl_act.envs.checked import CheckedEnvironment
from verl_act.envs.contract import check_environment
from verl_act.errors import EnvError
from verl_act.evaluate.metric_registry import summary
from verl_act.evaluate.records import EPISODES
from verl_act.evaluate.rollouts import PolicyUnderTest, rollout_tasks
from verl_act.journal import Journal
from verl_act.prompts import get_template
from verl_act.schema import Context

TASK = Task("odd", "train", "the task", "counting")
SHOWN = Observation("count", "0", ("add", "stop"))
STEP = StepResult("1", ("add", "stop"), 1.0, False, False, True)


class Name(str):
    """A text of a class of its own, as enumerations are."""


class Odd:
    """A game of two steps, sound but for what it is given: instead of an answer, or how it makes one."""

    def __init__(self, reset: Any = SHOWN, step: Any = STEP, plan: Any = None) -> None:
        self._reset, self._step, self._plan = reset, step, plan

    def reset(self, task: Task) -> Any:
        self.taken = 0
        return self._reset(task) if callable(self._reset) else self._reset

    def step(self, action: str) -> Any:
        self.taken += 1
        if callable(self._step):
            return self._step(action)
        if self._step is STEP:
            known = action in STEP.admissible_actions
            return replace(STEP, reward=float(known), admissible=known, done=self.taken > 1, success=False)
        return self._step

    def close(self) -> None:
        pass


class Planning(Odd):
    def plan_length(self) -> Any:
        return self._plan

    def snapshot(self) -> int:
        return self.taken

    def restore(self, snapshot: int) -> None:
        self.taken = snapshot


def spec(make: Callable[..., Any], **changes: Any) -> EnvSpec:
    return replace(EnvSpec("odd", make, lambda split, **_: [TASK], {}, ("train",)), **changes)


def test_sound_answers_are_passed_on() -> None:
    environment = spec(Odd).make()
    assert environment.reset(TASK) == SHOWN and environment.step("add") == STEP
    environment.close()


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("reward", np.float32(0.5), 0.5),
        ("reward", np.float64(0.5), 0.5),
        ("reward", np.array(0.5), 0.5),
        ("reward", np.array([0.5]), 0.5),
        ("reward", np.int64(1), 1.0),
        ("reward", np.bool_(True), 1.0),
        ("reward", torch.tensor(0.5), 0.5),
        ("reward", Decimal("0.5"), 0.5),
        ("reward", 1, 1.0),
        ("reward", False, 0.0),
        *[(flag, np.bool_(True), True) for flag in ("done", "success", "admissible")],
        ("done", np.array(False), False),
        ("done", torch.tensor(True), True),
        ("done", 1, True),
        ("done", np.int64(0), False),
        ("admissible_actions", ["add", "stop"], ("add", "stop")),
        ("admissible_actions", [], ()),
        ("admissible_actions", np.array(["add", "stop"]), ("add", "stop")),
        ("admissible_actions", np.array(["add", "stop"], dtype=object), ("add", "stop")),
        ("admissible_actions", (Name("add"), np.str_("stop")), ("add", "stop")),
        ("observation", np.str_("seen"), "seen"),
        ("observation", np.array("seen"), "seen"),
        ("observation", Name("seen"), "seen"),
        ("observation", "caf\u00e9 \U0001f916", "caf\u00e9 \U0001f916"),
        ("observation", "\ud83e\udd16 \ud83e.", "\U0001f916 \ufffd."),
    ],
)
def test_what_has_one_meaning_is_converted(name: str, given: Any, expected: Any) -> None:
    environment = spec(Odd).make(step=replace(STEP, **{name: given}))
    environment.reset(TASK)
    result = environment.step("add")
    assert result == replace(STEP, **{name: expected})
    assert type(getattr(result, name)) is type(expected)
    assert all(type(action) is str for action in result.admissible_actions) and type(result.observation) is str
    assert StepResult(**json.loads(json.dumps(asdict(result), allow_nan=False))).reward == result.reward
    if name in ("observation", "admissible_actions"):
        assert spec(Odd).make(reset=replace(SHOWN, **{name: given})).reset(TASK) == replace(SHOWN, **{name: expected})


ODD_VALUES = [
    *[
        ("reward", value)
        for value in (None, "1.0", b"1", float("nan"), float("inf"), -1e300, np.float32("-inf"), 1j, [1.0, 2])
    ],
    *[("reward", value) for value in (np.array([1.0, 2.0]), np.array("x"), 10**400, object())],
    *[(flag, value) for flag in ("done", "success", "admissible") for value in (None, "yes", 2, 0.5, [True], "")],
    ("done", np.array([True, False])),
    *[("observation", value) for value in (None, b"seen", 3, ["a", "b"], np.zeros(3), {"image": 1})],
    *[("admissible_actions", value) for value in (None, "add", b"add", 3, {"add", "stop"}, {"add": 1}, ("add", None))],
    *[("admissible_actions", value) for value in (("add", 3), np.array([1, 2]), np.array([["a"], ["b"]]), ("\ud83e",))],
]


@pytest.mark.parametrize(("name", "value"), ODD_VALUES)
def test_anything_else_is_refused_and_named(name: str, value: Any) -> None:
    environment = spec(Odd).make(step=replace(STEP, **{name: value}))
    environment.reset(TASK)
    with pytest.raises(EnvError, match=rf"the task.*'odd'.*{name}"):
        environment.step("add")
    if name in ("observation", "admissible_actions"):
        with pytest.raises(EnvError, match=rf"the task.*'odd'.*{name}"):
            spec(Odd).make(reset=replace(SHOWN, **{name: value})).reset(TASK)


GYMNASIUM = (("0", {}), ("0", 1.0, True, {}), ("0", 1.0, True, False, {}))


@pytest.mark.parametrize("answer", [None, "0", {}, *GYMNASIUM, STEP])
def test_another_kind_of_answer_is_refused(answer: Any) -> None:
    with pytest.raises(EnvError, match=r"the task.*'odd'.*reset.*Observation"):
        spec(Odd).make(reset=answer).reset(TASK)
    environment = spec(Odd).make(step=SHOWN if answer is STEP else answer)
    environment.reset(TASK)
    with pytest.raises(EnvError, match=r"the task.*'odd'.*step.*StepResult"):
        environment.step("add")


@pytest.mark.parametrize("made", [None, object(), 3])
def test_what_is_no_environment_is_refused(made: Any) -> None:
    with pytest.raises(EnvError, match=r"'odd'.*reset, step and close"):
        spec(lambda: made).make()


def test_it_passes_for_the_environment() -> None:
    made, planning = spec(Odd).make(), spec(Planning).make(plan=np.int64(3))
    assert type(made) is CheckedEnvironment and isinstance(made, Odd)
    assert not isinstance(made, PlanningEnvironment | SnapshotEnvironment | ReleasingEnvironment)
    assert isinstance(planning, PlanningEnvironment) and isinstance(planning, SnapshotEnvironment)
    assert not isinstance(planning, ReleasingEnvironment)
    planning.reset(TASK)
    assert planning.plan_length() == 3 and type(planning.plan_length()) is int
    planning.step("add")
    planning.restore(0)
    assert planning.taken == 0 == planning.snapshot()  # type: ignore[attr-defined]
    assert spec(Planning).make(plan=None).plan_length() is None
    for odd in (2.0, "3", np.zeros(2)):
        with pytest.raises(EnvError, match="plan_length"):
            spec(Planning).make(plan=odd).plan_length()
    with pytest.raises(AttributeError):
        made.no_such_thing  # type: ignore[attr-defined]  # noqa: B018


def test_a_spec_knows_the_settings_of_its_environment() -> None:
    one = spec(Odd)
    one.check_settings({"reset": 1, "step": 2})
    with pytest.raises(ValueError, match="'stop'"):
        one.check_settings({"stop": 1})
    assert replace(one, splits=("test",)).make == one.make == spec(Odd).make


# The contract


class Counter:
    """An expert; `act` is what it is given."""

    def __init__(self, act: Callable[[Context, Environment], Any]) -> None:
        self._act = act

    def reset(self, task: Task, seed: int) -> None:
        pass

    def act(self, context: Context, environment: Environment) -> Any:
        return self._act(context, environment)


def _raise(*_: Any, **__: Any) -> Any:
    raise KeyError("gone")


def as_numpy(action: str) -> StepResult:
    """As many environments of Gymnasium answer."""
    known = np.bool_(action in STEP.admissible_actions)
    return StepResult("1", np.array(["add", "stop"]), np.float32(known), np.True_, np.False_, known)  # type: ignore


class Adds:
    """Where an engine would be: one reply for ever."""

    async def reply(self, messages: Any, sampling: Sampling, seed: int | None = None) -> list[str]:
        return ["<action>add</action>"]


class LocalSession:
    """Where the pool would be: an episode in this process."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.first = environment.reset(TASK)

    async def step(self, action: str) -> StepResult:
        return self.environment.step(action)

    async def close(self) -> None:
        self.environment.close()


def test_episodes_of_a_numpy_environment_are_evaluated(tmp_path: Path) -> None:
    """Played, kept in the journal, averaged, and written as JSON that anybody can read."""

    class Pool:
        async def open(self, task: Task) -> LocalSession:
            return LocalSession(spec(lambda: Odd(step=as_numpy)).make())

    policy = PolicyUnderTest(cast(Any, Adds()), get_template("plain"), Sampling())
    saved = Journal(tmp_path / "out", "key")
    records = asyncio.run(rollout_tasks(policy, [TASK], cast(Any, Pool()), 5, saved))
    saved.close()
    assert Journal(tmp_path / "out", "key").get("episodes", 0) == records[0]
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert records[0]["end"] == "over" and records[0]["steps"] == 1 and records[0]["score"] == 1.0
    assert summary({EPISODES: records})["train"]["score"]["value"] == 1.0


def test_the_contract_is_kept_by_a_sound_environment() -> None:
    for step in (STEP, as_numpy):
        check_environment(spec(lambda step=step: Odd(step=step)), "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"make": lambda: Odd(step=_raise)}, r"the task.*step\(.*KeyError: 'gone'"),
        ({"make": lambda: Odd(reset=_raise)}, r"the task.*reset\(\) .*KeyError: 'gone'"),
        ({"make": _raise}, "odd: make .*KeyError: 'gone'"),
        ({"make": lambda: Odd(step=("0", 1.0, True, {}))}, "the task.*step.*StepResult"),
        ({"make": lambda: Odd(step=replace(STEP, reward=float("nan")))}, "the task.*reward"),
        ({"make": lambda: Odd(reset=None)}, "the task.*reset.*Observation"),
        ({"make": lambda: Planning(plan="far")}, "the task.*plan_length"),
        ({"tasks": _raise}, "odd: .*'train'.*KeyError: 'gone'"),
        ({"tasks": lambda split: ["a", "b"]}, "odd/train.*'a'"),
        ({"tasks": lambda split: [replace(TASK, split="test")]}, "odd/train.*Task"),
        ({"tasks": lambda split: [replace(TASK, seed=1.5)]}, "odd/train.*Task"),
        ({"experts": {"odd": _raise}}, "odd: .*expert.*KeyError"),
        ({"experts": {"odd": lambda: Counter(_raise)}}, "the task.*step 0: .*KeyError"),
        ({"experts": {"odd": lambda: Counter(lambda *_: "add")}}, "the task.*step 0: .*expert"),
        ({"experts": {"odd": lambda: Counter(lambda *_: ("add", 1))}}, "the task.*step 0: .*expert"),
    ],
)
def test_the_contract_names_what_is_broken(changes: dict[str, Any], message: str) -> None:
    check = {"make": Odd, **changes}
    with pytest.raises(EnvError, match=message):
        check_environment(spec(check.pop("make"), **check), "train")
