"""Where ALFWorld's games lie and which of them are played: official data and generated games alike.

Both have the layout `<data>/json_2.1.1/<split>/<task>/<trial>/{game.tw-pddl, traj_data.json}`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_act.envs.alfworld.game import FILE_NAME
from verl_act.envs.base import Task
from verl_act.errors import DataError, EmptySplitError, EnvError
from verl_act.text_files import read_json

NAME = "alfworld"
VERSION_FOLDER = "json_2.1.1"
SPLITS = ("train", "valid_seen", "valid_unseen")
"""`valid_seen`: rooms of the training games, in distribution; `valid_unseen`: other rooms, out of distribution."""

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
_UNSUPPORTED = ("movable", "Sliced")
"""Parts of a game's path that ALFWorld's own loader excludes: such tasks cannot be done in the text engine."""


@dataclass(frozen=True, slots=True)
class GameList:
    """The playable games of a split in sorted order, and how many were left out, by reason."""

    tasks: tuple[Task, ...]
    skipped: dict[str, int]


def data_root(data: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds `json_2.1.1`: `data`, or else `$ALFWORLD_DATA`.

    Raises `DataError` where it does not hold one.
    """
    given = data or os.environ.get("ALFWORLD_DATA")
    remedy = (
        "Generate games (`make_games`) or download ALFWorld's own (`alfworld-download`); pass their folder as `data`."
    )
    if not given:
        raise DataError(f"No ALFWorld games: neither the setting `data` nor $ALFWORLD_DATA names a folder. {remedy}")
    root = Path(given).expanduser()
    root = root.parent if root.name == VERSION_FOLDER else root
    if not (root / VERSION_FOLDER).is_dir():
        raise DataError(f"{root}: holds no ALFWorld games (no folder {VERSION_FOLDER!r}). {remedy}")
    return root


def game_path(task: Task, data: str | os.PathLike[str] | None = None) -> Path:
    """The file that `task` plays. Raises `EnvError` where the task is not one of ALFWorld's."""
    if task.env != NAME or task.split not in SPLITS:
        raise EnvError(f"{task}: is not an ALFWorld task; its splits are {', '.join(SPLITS)}.")
    return data_root(data) / VERSION_FOLDER / task.split / task.task_id / FILE_NAME


def list_games(split: str, data: str | os.PathLike[str] | None = None) -> GameList:
    """Every playable game of `split` once, sorted by task id, which is the path below the split's folder.

    Raises `EmptySplitError` where the split is missing or holds no playable game, `DataError` where a file is damaged.
    """
    if split not in SPLITS:
        raise DataError(f"ALFWorld has no split {split!r}; it has {', '.join(SPLITS)}.")
    folder = data_root(data) / VERSION_FOLDER / split
    tasks: list[Task] = []
    skipped: Counter[str] = Counter()
    for traj_path in sorted(folder.rglob("traj_data.json")):
        task_id = traj_path.parent.relative_to(folder).as_posix()
        if any(part in task_id for part in _UNSUPPORTED):
            skipped["movable receptacle or sliced object"] += 1
        elif not (game := traj_path.with_name(FILE_NAME)).is_file():
            skipped["no game file"] += 1
        elif (task_type := _read_json(traj_path).get("task_type")) not in TASK_TYPES:
            skipped["other task type"] += 1
        elif not _read_game(game)["solvable"]:
            skipped["unsolvable"] += 1
        else:
            tasks.append(Task(NAME, split, task_id, task_type))
    if not tasks:
        raise EmptySplitError(
            f"{folder}: holds no playable game (left out: {dict(skipped) or 'none'}). Generate or download games."
        )
    return GameList(tuple(tasks), dict(skipped))


def list_tasks(split: str, data: str | os.PathLike[str] | None = None, **_: Any) -> tuple[Task, ...]:
    """The tasks of `list_games`; further settings of the environment are accepted and mean nothing here."""
    return list_games(split, data).tasks


def _read_game(path: Path) -> dict[str, Any]:
    game = _read_json(path)
    if missing := [key for key in ("pddl_problem", "solvable") if key not in game]:
        raise DataError(f"{path}: has no {missing[0]!r}, so it is no game. Write or download it again.")
    return game


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {type(content).__name__}, not an object. Write or download its game again.")
    return content
