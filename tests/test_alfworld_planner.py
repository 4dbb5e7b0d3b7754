"""The plan length is exact: it can be walked, and nothing is shorter."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.game import read_game
from verl_act.envs.alfworld.game_index import TASK_TYPES, list_tasks
from verl_act.envs.alfworld.goal import parse_problem

MANIPULATIONS = ("take", "move", "open", "close", "clean", "heat", "cool", "use")


def random_states(games: Path, task_type: str, steps: int = 20) -> Iterator[AlfworldEnvironment]:
    """An environment in one state after another of random walks that take, carry off and treat whatever there is."""
    environment = AlfworldEnvironment(games, max_steps=10_000)
    for split in ("train", "valid_unseen"):
        for task in (task for task in list_tasks(split, games) if task.task_type == task_type):
            rng, actions = random.Random(task.task_id), environment.reset(task).admissible_actions
            for _ in range(steps):
                yield environment
                manipulations = [action for action in actions if action.startswith(MANIPULATIONS)]
                result = environment.step(
                    rng.choice(manipulations if manipulations and rng.random() < 0.7 else actions)
                )
                if result.done:
                    break
                actions = result.admissible_actions


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_a_plan_wins_in_exactly_its_length(task_type: str, games: Path) -> None:
    for environment in random_states(games, task_type):
        here, plan = environment.snapshot(), environment.plan()
        assert plan is not None and len(plan) == environment.plan_length()
        results = [environment.step(action) for action in plan]
        assert all(result.admissible for result in results)
        assert [result.success for result in results] == [False] * (len(plan) - 1) + [True]
        environment.restore(here)


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_no_action_shortens_the_way_by_more_than_one(task_type: str, games: Path) -> None:
    """With the test above this proves that plans are shortest: lengths are reached, and fall by at most one a step."""
    for environment in random_states(games, task_type):
        here, length = environment.snapshot(), environment.plan_length()
        assert length is not None
        for action in here.engine.menu.commands:
            environment.step(action)
            after = environment.plan_length()
            assert after is not None and after >= length - 1, action
            environment.restore(here)


def test_goals_are_read_from_all_six_types(games: Path) -> None:
    goals = {
        task.task_type: parse_problem(read_game(games / "json_2.1.1" / "train" / task.task_id / "game.tw-pddl").problem)
        for task in list_tasks("train", games)
    }
    read = {name: (goal.verb, goal.count, goal.look) for name, goal in goals.items() if goal is not None}
    assert read == {
        "pick_and_place_simple": (None, 1, False),
        "look_at_obj_in_light": (None, 1, True),
        "pick_clean_then_place_in_recep": ("clean", 1, False),
        "pick_heat_then_place_in_recep": ("heat", 1, False),
        "pick_cool_then_place_in_recep": ("cool", 1, False),
        "pick_two_obj_and_place": (None, 2, False),
    }


def test_the_way_to_another_goal_is_unknown(games: Path) -> None:
    """A goal of none of the task types, such as an open fridge."""
    game = read_game(next(games.glob("json_2.1.1/train/pick_cool*/*/game.tw-pddl")))
    head, _, _ = game.problem.partition("(:goal")
    fridge = next(word for word in head.replace(")", " ").split() if word.startswith("Fridge_bar"))
    problem = f"{head}(:goal (and (opened {fridge})))\n)"
    assert parse_problem(problem) is None
    environment = AlfworldEnvironment()
    environment.play(type(game)("fridge", game.domain, game.grammar, problem))
    assert environment.plan() is None and environment.plan_length() is None
    assert [environment.step(action).success for action in ("go to fridge 1", "open fridge 1")] == [False, True]
