"""Early Experience's expert data (arXiv 2510.08558) and AgentGym's, in rows made from our own experts' episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from published_rows import Row, expert_trajectories, rejections, write

from verl_act.data_prep.imports.import_trajectories import TRAJECTORIES, import_trajectories
from verl_act.data_prep.imports.published_tasks import task_finder
from verl_act.envs.importer import Published
from verl_act.envs.scienceworld.importer import modern_action
from verl_act.envs.webshop.make_catalogue import make_catalogue
from verl_act.errors import DataError
from verl_act.schema import Step, read_steps
from verl_act.settings.data import CatalogueSettings, ImportSettings

THOUGHT = "I will execute this action"


def step_rows(steps: Sequence[Step]) -> list[Row]:
    """A row for each step; the first prompt shows the task, the later ones count the steps."""
    rows = []
    for step in steps:
        goal, seen = step.context.goal, step.context.observation
        before = f"Prior to this step, you have already taken {step.step} step(s). Below are the most recent ..."
        prompt = [
            "You are an expert agent operating in a text environment.",
            f"Your task is to: {goal}.",
            *([before] if step.step else []),
            f"You are now at step {step.step + 1} and your current observation is: {seen}",
            f"Your admissible actions are: [{', '.join(step.context.admissible_actions)}].",
            "Answer within <action> </action> tags.",
        ]
        output = f"<think>{THOUGHT}</think><action>{step.action}</action>"
        rows.append({"instruction": "\n".join(prompt), "input": "", "output": output})
    return rows


def imported(rows: Sequence[Row], env: str, settings: Row, folder: Path, form: str = "early-experience") -> list[Step]:
    path = write(folder / "rows.json", rows)
    import_trajectories(
        ImportSettings(files=[path], env=env, format=form, env_settings=settings, workers=0), folder / "out"
    )
    return read_steps([folder / "out" / TRAJECTORIES])


def actions(steps: Sequence[Step]) -> list[tuple[str, str, str | None]]:
    return [(step.task_id, step.action, step.thought) for step in steps]


def test_the_steps_of_alfworld_episodes_are_put_together(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    first, second, third = expert_trajectories("alfworld", "train", 3, settings)
    gap = [row for at, row in enumerate(step_rows(second)) if at != 1]
    found = imported([*step_rows(first), *gap, *step_rows(third)], "alfworld", settings, tmp_path)
    assert actions(found) == [(step.task_id, step.action, THOUGHT) for step in (*first, *third)]
    assert all(step.verified and step.source == "early-experience" for step in found)
    ((row, reason),) = rejections(tmp_path / "out").items()
    assert row == len(first) and "is step 2 of its episode where step 1 should be" in reason


def test_the_steps_of_webshop_episodes_are_put_together(tmp_path: Path) -> None:
    make_catalogue(CatalogueSettings(products=60, instructions=2, seed=5), tmp_path / "shop")
    settings = {"data": str(tmp_path / "shop")}
    won = expert_trajectories("webshop", "train", 2, settings)
    rows = [row for steps in won for row in step_rows(steps)]
    found = imported(rows, "webshop", settings, tmp_path)
    assert actions(found) == [(step.task_id, step.action, THOUGHT) for steps in won for step in steps]


def spoken(step: Step, action: str) -> str:
    return f"Thought:\n{THOUGHT} {step.step}\n\nAction:\n{action}"


def test_scienceworlds_conversations_are_known_by_how_they_begin(tmp_path: Path) -> None:
    settings = {"tasks": ["power-component"], "max_steps": 50, "simplification": "easy"}
    (steps,) = expert_trajectories("scienceworld", "dev", 1, settings)
    begin = f"Task Description:\nYour task is to {steps[0].context.goal}\n{steps[0].context.observation}"
    messages = [{"role": "system", "content": "Interact with ScienceWorld."}, {"role": "user", "content": begin}]
    for step in steps:
        messages.append({"role": "assistant", "content": spoken(step, step.action)})
        messages.append({"role": "user", "content": "..."})
    found = imported([{"messages": messages}], "scienceworld", settings, tmp_path)
    assert actions(found) == [(step.task_id, step.action, f"{THOUGHT} {step.step}") for step in steps]


def test_the_simplification_in_use_is_told_where_rows_of_another_find_no_task(tmp_path: Path) -> None:
    """Early Experience's and AgentGym's rows begin at closed doors, which the default opens."""
    closed = {"tasks": ["power-component"], "max_steps": 50, "simplification": ""}
    (steps,) = expert_trajectories("scienceworld", "dev", 1, closed)
    assert "door" in steps[0].context.observation and "closed" in steps[0].context.observation
    begin = f"Task Description:\nYour task is to {steps[0].context.goal}\n{steps[0].context.observation}"
    messages = [{"role": "user", "content": begin}]
    messages += [{"role": "assistant", "content": spoken(step, step.action)} for step in steps]
    told = r"no such task.*simplification 'easy'.*--env-settings 'simplification=\"\"'"
    with pytest.raises(DataError, match=told):
        imported([{"messages": messages}], "scienceworld", {"tasks": ["power-component"]}, tmp_path)
    found = imported([{"messages": messages}], "scienceworld", closed, tmp_path)
    assert [step.action for step in found] == [step.action for step in steps]
    row = {"task_id": steps[0].task_id, "actions": ["teleport to kitchen"]}
    with pytest.raises(DataError, match=r"simplification ''.*--env-settings simplification=easy"):
        imported([row], "scienceworld", closed, tmp_path, "actions")


def test_agentgyms_rows_are_known_by_their_number(tmp_path: Path) -> None:
    """`item_id` counts the variations of AgentGym's tasks; places have their older names."""
    settings = {"tasks": ["find-plant"], "max_steps": 30}
    (steps,) = expert_trajectories("scienceworld", "train", 1, settings)
    assert any("greenhouse" in step.action for step in steps)
    find = task_finder("scienceworld", {})

    def task(number: int) -> list[str]:
        return [task.task_id for task in find(Published(0, f"sciworld_{number}", "", ("look",), (None,)))]

    numbers = {names[0]: at for at in range(6000) if (names := task(at))}
    assert numbers["boil/0"] == 0 and numbers["boil/29"] == 29 and numbers["melt/0"] == 30
    assert not any(name.startswith(("grow-", "inclined-", "mendelian-")) for name in numbers)
    assert numbers["chemistry-mix/0"] == numbers["find-animal/299"] + 1, "growing is left out"
    turns = [{"from": "human", "value": "Interact.", "loss": None}, {"from": "gpt", "value": "OK", "loss": False}]
    for step in steps:
        turns.append({"from": "human", "value": "...", "loss": None})
        older = step.action.replace("greenhouse", "green house")
        turns.append({"from": "gpt", "value": spoken(step, older), "loss": True})
    row = {"item_id": f"sciworld_{numbers[steps[0].task_id]}", "conversations": turns}
    found = imported([row], "scienceworld", settings, tmp_path, "eto")
    assert actions(found) == [(step.task_id, step.action, f"{THOUGHT} {step.step}") for step in steps]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("go to green house", "go to greenhouse"),
        (
            "connect metal fork terminal 1 to red wire terminal 2",
            "connect metal fork to red wire terminal 2",
        ),
        ("connect red wire terminal 1 to battery anode", "connect red wire terminal 1 to battery anode"),
        ("look around", "look around"),
    ],
)
def test_older_scienceworld_actions_are_respelled(old: str, new: str) -> None:
    assert modern_action(old) == new


def as_messages(row: Row) -> list[Row]:
    return [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]


def test_lines_of_messages_are_put_together_too(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    (steps,) = expert_trajectories("alfworld", "valid_seen", 1, settings)
    path = tmp_path / "expert_sft.jsonl"
    rows = [{"messages": as_messages(row)} for row in step_rows(steps)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_trajectories(
        ImportSettings(files=[path], env="alfworld", format="early-experience", env_settings=settings, workers=0),
        tmp_path / "out",
    )
    assert len(read_steps([tmp_path / "out" / TRAJECTORIES])) == len(steps)
