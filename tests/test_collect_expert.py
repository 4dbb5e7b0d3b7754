"""Trajectories of experts: how often they win, and that a file holds only proven games."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from verl_act.data_prep.expert.collect_expert import DROPPED, TRAJECTORIES, collect_expert, play, replays
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.game_index import list_tasks
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.alfworld.importer import modern_command
from verl_act.envs.alfworld.search import SearchExpert
from verl_act.envs.base import StepResult
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, DataError
from verl_act.manifest import read_manifest
from verl_act.schema import Step, read_steps
from verl_act.settings.data import ExpertSettings, GamesSettings


@pytest.fixture(scope="module")
def full_games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "games"
    make_games(GamesSettings(counts={"train": 12}, size="full", seed=3, workers=0), folder)
    return folder


@pytest.mark.parametrize("name", ["search", "planner", "walkthrough"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_experts_win(name: str, size: str, games: Path, full_games: Path) -> None:
    data = games if size == "small" else full_games
    environment, expert = AlfworldEnvironment(data), get_env("alfworld").experts[name]()
    for task in list_tasks("train", data):
        steps = play(environment, expert, task, source=name)
        assert steps[-1].success
        if name == "planner":
            assert [step.plan_length for step in steps] == list(range(len(steps), 0, -1))


def test_trajectories_are_written_proven_and_repeatable(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games)}
    manifest = collect_expert(
        ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=0), tmp_path / "one"
    )
    collect_expert(ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=2), tmp_path / "two")
    steps = read_steps([tmp_path / "one" / TRAJECTORIES])
    assert steps == read_steps([tmp_path / "two" / TRAJECTORIES])
    assert all(step.verified and step.success and step.plan_length is not None for step in steps)
    assert all(step.action in step.context.admissible_actions for step in steps)
    assert len({step.state_id for step in steps}) == len(steps)
    assert (manifest.counts["trajectories"], manifest.counts["dropped"]) == (12, {})
    assert 0.3 < manifest.counts["inferable_share"] < 1
    assert all(bool(step.tied_actions) is not step.inferable for step in steps)
    assert all(step.action in step.tied_actions for step in steps if step.tied_actions)
    other = ExpertSettings(env="alfworld", split="train", env_settings=settings, seed=1, workers=0)
    collect_expert(other, tmp_path / "other")
    assert steps != read_steps([tmp_path / "other" / TRAJECTORIES])
    stored = read_manifest(tmp_path / "one")
    assert stored is not None and list(stored.inputs) == [str(games)]


def test_lost_games_are_dropped_and_counted(games: Path, tmp_path: Path) -> None:
    settings = {"data": str(games), "max_steps": 6}
    manifest = collect_expert(
        ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=0), tmp_path / "short"
    )
    kept, dropped = manifest.counts["trajectories"], manifest.counts["dropped"]
    assert kept + dropped["not won"] == 12 and 0 < kept < 12
    lost = [json.loads(line) for line in (tmp_path / "short" / DROPPED).read_text().splitlines()]
    assert [task["kind"] for task in lost] == ["not won"] * dropped["not won"]
    won = {step.task_id for step in read_steps([tmp_path / "short" / TRAJECTORIES])}
    assert len(won | {task["task_id"] for task in lost}) == 12
    with pytest.raises(DataError, match=r"\b12 tasks of alfworld/train"):
        collect_expert(
            ExpertSettings(env="alfworld", split="train", env_settings={**settings, "max_steps": 1}, workers=0),
            tmp_path / "none",
        )
    assert not (tmp_path / "none").exists()


def test_errors_are_counted_by_kind_and_told_apart(games: Path, tmp_path: Path) -> None:
    shutil.copytree(games, tmp_path / "games")
    for task in list_tasks("train", games)[:2]:
        path = tmp_path / "games" / "json_2.1.1" / "train" / task.task_id / "game.tw-pddl"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pddl_problem": "(nonsense"}))
    settings = {"data": str(tmp_path / "games")}
    manifest = collect_expert(
        ExpertSettings(env="alfworld", split="train", env_settings=settings, workers=0), tmp_path / "out"
    )
    assert manifest.counts["dropped"] == {"error": 2}
    details = [json.loads(line)["details"] for line in (tmp_path / "out" / DROPPED).read_text().splitlines()]
    assert len(set(details)) == 2 and all("game.tw-pddl" in text for text in details)


def test_a_bug_in_an_environment_costs_one_task(games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, taken = AlfworldEnvironment.step, []

    def buggy(self: AlfworldEnvironment, action: str) -> StepResult:
        taken.append(action)
        if len(taken) == 2:
            raise IndexError("in the middle of the first game")
        return step(self, action)

    monkeypatch.setattr(AlfworldEnvironment, "step", buggy)
    manifest = collect_expert(
        ExpertSettings(env="alfworld", split="train", env_settings={"data": str(games)}, workers=0), tmp_path / "out"
    )
    assert manifest.counts["dropped"] == {"error": 1}
    (lost,) = map(json.loads, (tmp_path / "out" / DROPPED).read_text().splitlines())
    assert lost["task_id"] == list_tasks("train", games)[0].task_id
    assert lost["details"] == "IndexError: in the middle of the first game"


def test_a_replay_that_differs_is_noticed(games: Path) -> None:
    from dataclasses import replace

    environment, task = AlfworldEnvironment(games), list_tasks("train", games)[0]
    steps = play(environment, SearchExpert(), task, source="search")
    assert replays(AlfworldEnvironment(games), task, steps)

    def changed(at: int, change: Callable[[Step], Step]) -> list[Step]:
        return [change(step) if number == at else step for number, step in enumerate(steps)]

    assert not replays(environment, task, changed(1, lambda s: replace(s, context=replace(s.context, observation="x"))))
    assert not replays(environment, task, changed(0, lambda step: replace(step, reward=1.0)))


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"expert": "oracle"}, {"limit": 0}, {"env": "nowhere"}])
def test_impossible_orders_are_refused(wrong: dict, games: Path, tmp_path: Path) -> None:
    order = {"env": "alfworld", "split": "train", "env_settings": {"data": str(games)}} | wrong
    with pytest.raises(ConfigError):
        collect_expert(ExpertSettings(workers=0, **order), tmp_path / "none")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("put mug 1 in/on desk 2", "move mug 1 to desk 2"),
        ("put cd 3 in drawer 1", "move cd 3 to drawer 1"),
        ("put pen 1 on sidetable 1", "move pen 1 to sidetable 1"),
        ("move mug 1 to desk 2", "move mug 1 to desk 2"),
        ("go to desk 1", "go to desk 1"),
        ("put mug 1", "put mug 1"),
        ("input mug 1 in/on desk 1", "input mug 1 in/on desk 1"),
        ("", ""),
    ],
)
def test_old_put_commands_are_respelled(old: str, new: str) -> None:
    assert modern_command(old) == new


def test_games_of_older_versions_are_played_in_their_own_words(games: Path, tmp_path: Path) -> None:
    """Before ALFWorld 0.4 a game's grammar said `put mug 1 in/on desk 1`."""
    shutil.copytree(games / "json_2.1.1" / "train", tmp_path / "json_2.1.1" / "train")
    for path in tmp_path.rglob("game.tw-pddl"):
        content = json.loads(path.read_text())
        content["grammar"] = (
            content["grammar"]
            .replace("move {o} to {r}", "put {o} in/on {r}")
            .replace("You move the {o.name} to the", "You put the {o.name} in/on the")
        )
        path.write_text(json.dumps(content))
    environment = AlfworldEnvironment(tmp_path)
    for task in list_tasks("train", tmp_path):
        for name in ("search", "planner"):
            steps = play(environment, get_env("alfworld").experts[name](), task, source=name)
            assert steps[-1].success and not any(step.action.startswith("move") for step in steps)
