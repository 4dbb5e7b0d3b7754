"""Generated games: the same bytes for the same seed, balanced, winnable, and nothing held out seen in training."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from verl_act.envs import registry
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.game_index import SPLITS, TASK_TYPES, list_games
from verl_act.envs.alfworld.games.make_games import make_games
from verl_act.envs.alfworld.games.rooms import HELD_OUT_ROOMS, is_held_out, read_room
from verl_act.envs.make_games import make_games as make_games_of_any
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, OptionError
from verl_act.manifest import read_manifest
from verl_act.settings.data import GamesSettings


def contents(folder: Path) -> dict[str, bytes]:
    root = folder / "json_2.1.1"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def combination(folder: Path, split: str, task_id: str) -> tuple[int, str, str]:
    """Room, object and destination (or lamp) of a game."""
    traj = json.loads((folder / "json_2.1.1" / split / task_id / "traj_data.json").read_text())
    params = traj["pddl_params"]
    return traj["scene"]["scene_num"], params["object_target"], params["parent_target"] or params["toggle_target"]


def test_the_same_seed_gives_the_same_bytes_however_many_work(games: Path, tmp_path: Path) -> None:
    counts = {"train": 12, "valid_seen": 6, "valid_unseen": 6}
    make_games(GamesSettings(counts=counts, seed=7, workers=2, size="small"), tmp_path / "again")
    make_games(GamesSettings(counts=counts, seed=8, workers=0, size="small"), tmp_path / "other")
    assert contents(tmp_path / "again") == contents(games)
    assert not set(contents(tmp_path / "other")) & set(contents(games))


def test_games_are_balanced_and_their_walkthroughs_win(games: Path) -> None:
    environment = AlfworldEnvironment(games)
    for split, each in (("train", 2), ("valid_seen", 1), ("valid_unseen", 1)):
        found = list_games(split, games)
        assert not found.skipped
        assert Counter(task.task_type for task in found.tasks) == dict.fromkeys(TASK_TYPES, each)
        for task in found.tasks:
            environment.reset(task)
            results = [environment.step(action) for action in environment.walkthrough()]
            assert [result.success for result in results] == [False] * (len(results) - 1) + [True]


def test_splits_differ_as_they_say(games: Path) -> None:
    train = {combination(games, "train", task.task_id) for task in list_games("train", games).tasks}
    for task in list_games("valid_seen", games).tasks:
        room, *pair = combination(games, "valid_seen", task.task_id)
        assert room in {trained for trained, *_ in train} and not is_held_out(*pair)
    for task in list_games("valid_unseen", games).tasks:
        room, *pair = combination(games, "valid_unseen", task.task_id)
        assert room in HELD_OUT_ROOMS and is_held_out(*pair)
    assert all(room not in HELD_OUT_ROOMS and not is_held_out(*pair) for room, *pair in train)


def test_no_task_is_in_two_splits(tmp_path: Path) -> None:
    """With this seed, game 4 of both splits is of one kind, object, destination and room: names would be the same."""
    make_games(
        GamesSettings(counts={"train": 12, "valid_seen": 6}, seed=3, workers=0, size="small"), tmp_path / "games"
    )
    names = [task.task_id for split in ("train", "valid_seen") for task in list_games(split, tmp_path / "games").tasks]
    assert len(set(names)) == len(names) == 18


def test_development_games_change_no_other_split_and_are_in_none(games: Path, tmp_path: Path) -> None:
    counts = {"train": 12, "valid_seen": 6, "valid_unseen": 6, "dev": 18}
    make_games(GamesSettings(counts=counts, seed=7, workers=0, size="small"), tmp_path / "games")
    made = contents(tmp_path / "games")
    assert {name: text for name, text in made.items() if not name.startswith("dev/")} == contents(games)
    tasks = {split: list_games(split, tmp_path / "games").tasks for split in SPLITS}
    assert Counter(task.task_type for task in tasks["dev"]) == dict.fromkeys(TASK_TYPES, 3)
    names = [task.task_id for listed in tasks.values() for task in listed]
    assert len(set(names)) == len(names) == sum(counts.values())
    texts = [text for name, text in made.items() if name.endswith("initial_state.pddl")]
    assert len(set(texts)) == len(texts)
    trained = {combination(tmp_path / "games", "train", task.task_id)[0] for task in tasks["train"]}
    for task in tasks["dev"]:
        room, *pair = combination(tmp_path / "games", "dev", task.task_id)
        assert room in trained and not is_held_out(*pair)


def test_small_rooms_are_small_and_can_do_their_tasks() -> None:
    for number in (1, 10, 201, 301, 401):
        small, full = read_room(number, "small"), read_room(number, "full")
        assert len(small.receptacles) == min(9, len(full.receptacles))
        assert small.receptacles.items() <= full.receptacles.items()
    assert {"Fridge", "Microwave", "SinkBasin"} <= read_room(1, "small").receptacle_types()


def test_full_games_can_be_made(tmp_path: Path) -> None:
    make_games(GamesSettings(counts={"train": 6}, size="full", workers=0), tmp_path / "full")
    assert len(list_games("train", tmp_path / "full").tasks) == 6


def test_the_manifest_says_what_was_made(games: Path) -> None:
    manifest = read_manifest(games)
    assert manifest is not None and (manifest.stage, manifest.seed) == ("make_games", 7)
    made = {split: count["games"] for split, count in manifest.counts.items()}
    assert made == {"train": 12, "valid_seen": 6, "valid_unseen": 6}


def test_an_environment_makes_its_own_games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[GamesSettings, Path]] = []
    spec = replace(get_env("alfworld"), name="maze", splits=("hard",), make_games=lambda *args: made.append(args))
    monkeypatch.setattr(registry, "REGISTERED", {"maze": spec})
    order = GamesSettings(env="maze", counts={"hard": 2})
    make_games_of_any(order, tmp_path / "games")
    assert made == [(order, tmp_path / "games")]
    with pytest.raises(OptionError, match=r"--counts is {'train': 1}; .* of hard\."):
        make_games_of_any(GamesSettings(env="maze", counts={"train": 1}), tmp_path / "games")
    with pytest.raises(OptionError, match=r"'webshop'.* alfworld, maze\."):
        make_games_of_any(GamesSettings(env="webshop"), tmp_path / "games")


@pytest.mark.parametrize("wrong", [{"counts": {"test": 1}}, {"counts": {}}, {"counts": {"train": 1}, "size": "big"}])
def test_impossible_orders_are_refused(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        make_games_of_any(GamesSettings(**{"workers": 0, "size": "small", **wrong}), tmp_path / "none")
    assert not (tmp_path / "none").exists()
