"""The contract, over every environment that ships, and that it notices a breach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.base import (
    Environment,
    EnvSpec,
    PlanningEnvironment,
    SnapshotEnvironment,
    StepResult,
    Task,
    read_tasks,
)
from verl_act.envs.contract import check_environment, check_step_limit
from verl_act.envs.registry import get_env
from verl_act.errors import DataError, EnvError
from verl_act.schema import TASK, Context, write_rows


@pytest.fixture(params=["alfworld"])
def environment(request: pytest.FixtureRequest, games: Path) -> tuple[str, dict[str, Any]]:
    """Name and settings of each environment."""
    return request.param, {"alfworld": {"data": str(games), "dev_share": 0.5}}[request.param]


def test_every_environment_keeps_the_contract(environment: tuple[str, dict[str, Any]]) -> None:
    name, settings = environment
    spec = get_env(name)
    for split in spec.splits:
        check_environment(spec, split, settings)


def test_alfworld_plans_and_goes_back() -> None:
    made = get_env("alfworld").make()
    assert isinstance(made, PlanningEnvironment) and isinstance(made, SnapshotEnvironment)


def test_the_contract_notices_a_breach(games: Path) -> None:
    class Generous(AlfworldEnvironment):
        """Counts running out of steps as success."""

        def step(self, action: str) -> StepResult:
            result = super().step(action)
            return StepResult(*[getattr(result, name) for name in result.__slots__[:4]], result.done, result.admissible)

    sound = get_env("alfworld")
    spec = EnvSpec(sound.name, Generous, sound.tasks, sound.experts, sound.splits)
    with pytest.raises(EnvError, match="success"):
        check_environment(spec, "train", {"data": str(games)})


def test_the_contract_notices_an_inadmissible_expert_and_an_empty_split(games: Path) -> None:
    class Careless(SearchExpert):
        """Says something else first, as if it followed from what is shown."""

        def act(self, context: Context, environment: Environment | None = None) -> tuple[str, bool]:
            return super().act(context) if context.history else ("dance", True)

    sound = get_env("alfworld")
    with pytest.raises(EnvError, match=r"step 0: .*'dance'"):
        check_environment(replace(sound, experts={"careless": Careless}), "train", {"data": str(games)})
    with pytest.raises(EnvError, match="alfworld/train"):
        check_environment(replace(sound, tasks=lambda split, **_: ()), "train", {"data": str(games)})


def test_any_step_limit_that_is_reached_will_do(games: Path) -> None:
    (task, *_) = get_env("alfworld").tasks("train", data=games)
    check_step_limit(AlfworldEnvironment(games, max_steps=300), task)
    with pytest.raises(EnvError, match="step limit"):
        check_step_limit(AlfworldEnvironment(games, max_steps=100_000), task)


@pytest.mark.parametrize("name", ["task_id", "split"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "..",
        "../..",
        "a/../../b",
        "a/..",
        "/etc/passwd",
        "\\\\server\\share",
        "a\\..\\b",
        "a\0b",
        "\0",
        3,
        None,
        b"a",
    ],
    ids=repr,
)
def test_a_task_whose_name_leaves_the_data_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    """However it comes in: nobody can hold such a task, so no environment can be given it."""
    good = {"env": "alfworld", "split": "train", "task_id": "a/trial", "task_type": "x", "seed": 0}
    assert Task(**good).task_id == "a/trial"
    with pytest.raises(EnvError, match=name):
        Task(**good | {name: value})
    if isinstance(value, str):
        write_rows(tmp_path / "tasks.parquet", [good, good | {name: value}], TASK)
        with pytest.raises(DataError, match=rf"tasks\.parquet: row 1: .*{name}"):
            read_tasks(tmp_path / "tasks.parquet")


@pytest.mark.parametrize(
    "task_id", ["...", "a..b", "boil/12", "17-B0FVH4CJRR", "[/x]", "a|b\nc", "~", "C:", "-rf", "x" * 9999]
)
@pytest.mark.parametrize("env", ["alfworld", "scienceworld", "webshop"])
def test_unknown_tasks_are_refused_by_every_environment(task_id: str, env: str, games: Path) -> None:
    environment = get_env(env).make(**({"data": str(games)} if env == "alfworld" else {}))
    split = "train" if task_id not in ("boil/12", "17-B0FVH4CJRR") else "test"
    with pytest.raises(EnvError):
        environment.reset(Task(env, split, task_id, "x"))
    environment.close()
