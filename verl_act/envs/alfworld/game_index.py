"""Finds and lists ALFWorld games, official data and generated games alike.

Both have the layout `<data>/json_2.1.1/<split>/<task>/<trial>/{game.tw-pddl, traj_data.json}`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from verl_act.envs.alfworld.game import FILE_NAME, read_game
from verl_act.envs.alfworld.package import VERSION_FOLDER
from verl_act.envs.base import Task
from verl_act.errors import DataError, EmptySplitError, EnvError, InstallationError, NotInstalledError
from verl_act.linked_files import Files, files_below
from verl_act.names import counts_text
from verl_act.settings.data import OFFICIAL_GAMES
from verl_act.text_files import read_json

NAME = "alfworld"
SPLITS = ("train", "valid_seen", "valid_unseen", "dev")
"""`valid_seen`: rooms of the training games, in distribution; `valid_unseen`: other rooms, out of distribution; `dev`:
rooms of the training games, to choose settings on. The official data have no `dev`: see `list_games`."""

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
_UNSUPPORTED = ("movable", "Sliced")
"""Words in a game's path that ALFWorld's own loader excludes: the text engine cannot play such tasks."""

_REMEDY = (
    "Generate games (`verl-act data games`) or download ALFWorld's own (`alfworld-download`); pass their folder as "
    "`data`."
)

logger = logging.getLogger(__name__)


class GameList(NamedTuple):
    """The playable games of a split in sorted order, and the number of skipped games by reason.

    `damaged` says what is wrong with each damaged game.
    """

    tasks: tuple[Task, ...]
    skipped: dict[str, int]
    damaged: tuple[str, ...] = ()


def game_path(task: Task, data: str | os.PathLike[str] | None = None) -> Path:
    """The game file of `task`. Raises `EnvError` if it is not an ALFWorld task."""
    if task.env != NAME or task.split not in SPLITS:
        raise EnvError(f"{task}: is not an ALFWorld task; its splits are {', '.join(SPLITS)}.")
    return _split_folder(task.split, data) / task.task_id / FILE_NAME


def list_games(split: str, data: str | os.PathLike[str] | None = None, dev_share: float = 0.0) -> GameList:
    """Every playable game of `split` once, sorted by task id, which is the path below the split's folder.

    Data without a folder `dev` take about `dev_share` of the training games for it, which `train` then lacks. They are
    chosen by a hash of the task, so that all games of one task in one room are on the same side.

    Follows links. Skips games that are damaged or not known to be solvable, as ALFWorld's own loader does, and logs the
    number of damaged games. Raises `EmptySplitError` if the split is missing or holds no playable game, `DataError` if
    a folder or file cannot be read.
    """
    if split not in SPLITS:
        raise DataError(f"ALFWorld has no split {split!r}; it has {', '.join(SPLITS)}.")
    folder = _split_folder(split, data)
    if dev_share and _split_folder("dev", data).name == "dev":
        raise DataError(f"{folder.parent}: has games of its own for dev. Remove the setting dev_share.")
    with _reading():
        below = files_below(folder) if folder.is_dir() else Files((), (), ())
    tasks: list[Task] = []
    skipped = Counter({"link to a folder that is listed already": len(below.repeated)})
    damaged = [f"{path}: is a link that leads nowhere." for path in below.broken]
    for traj_path in (path for path in below.files if path.name == "traj_data.json"):
        try:
            with _reading():
                listed = _task_or_reason(traj_path, folder, split)
            if isinstance(listed, Task):
                tasks.append(listed)
            else:
                skipped[listed] += 1
        except _DamagedGame as error:
            damaged.append(str(error))
    skipped["damaged"] = len(damaged)
    if damaged:
        logger.warning("%s: damaged games left out: %d. The first: %s %s", folder, len(damaged), damaged[0], _REMEDY)
    if folder.name == "train":
        tasks = [task for task in tasks if (_position(task) < dev_share) == (split == "dev")]
    if not tasks:
        missing = " `dev` needs games in a folder of that name, or the setting dev_share." if split == "dev" else ""
        raise EmptySplitError(
            f"{folder}: holds no playable game of {split} (left out: {dict(+skipped) or 'none'}).{missing} {_REMEDY}"
        )
    return GameList(tuple(tasks), dict(+skipped), tuple(damaged))


def list_tasks(
    split: str, data: str | os.PathLike[str] | None = None, dev_share: float = 0.0, **_: Any
) -> tuple[Task, ...]:
    """The tasks of `list_games`; other environment settings are accepted and ignored."""
    return list_games(split, data, dev_share).tasks


def data_digest(tasks: Iterable[Task], data: str | os.PathLike[str] | None = None, **_: Any) -> str:
    """SHA-256 of what the engine plays of the tasks' game files: domain, grammar and problem, in their order."""
    combined = hashlib.sha256()
    for task in tasks:
        game = read_game(game_path(task, data))
        for text in (game.domain, game.grammar, game.problem):
            combined.update(hashlib.sha256(text.encode()).digest())
    return combined.hexdigest()


def check_games() -> str:
    """The doctor's check of the official games: those in $ALFWORLD_DATA, or where `alfworld-download` puts them."""
    remedy = "Run alfworld-download again, or set ALFWORLD_DATA to the folder that holds json_2.1.1."
    folder = os.environ.get("ALFWORLD_DATA")  # `package` sets it where alfworld-download has put the games
    if not folder:
        raise NotInstalledError(
            "$ALFWORLD_DATA is not set; recipes that generate their games need nothing.",
            "For the official games: alfworld-download, then set ALFWORLD_DATA to their folder.",
        )
    try:
        games = {split: list_games(split, folder) for split in OFFICIAL_GAMES}
    except DataError as error:
        raise InstallationError(f"{str(error).partition('. ')[0].rstrip('.')}.", remedy) from error
    for split, listed in games.items():
        if listed.damaged:
            detail = f"{len(listed.damaged)} of {split} damaged, which are left out: {listed.damaged[0]}"
            raise InstallationError(detail, remedy)
    counts = {split: len(listed.tasks) for split, listed in games.items()}
    unofficial = f"not the official games ({counts_text(OFFICIAL_GAMES)})"
    return f"{folder}: {counts_text(counts)}; {'the official games' if counts == OFFICIAL_GAMES else unofficial}"


def _split_folder(split: str, data: str | os.PathLike[str] | None) -> Path:
    """The folder with the games of `split` in `data`, or else in `$ALFWORLD_DATA`: that of `train` for `dev`, if there
    is none of that name. Raises `DataError` without data.
    """
    if not (data := data or os.environ.get("ALFWORLD_DATA")):
        raise DataError(f"No ALFWorld games: neither the setting `data` nor $ALFWORLD_DATA names a folder. {_REMEDY}")
    root = Path(data).expanduser()
    games = root if root.name == VERSION_FOLDER else root / VERSION_FOLDER
    with _reading():
        if not games.is_dir():
            raise DataError(f"{games.parent}: holds no ALFWorld games (no folder {VERSION_FOLDER!r}). {_REMEDY}")
        return games / ("train" if split == "dev" and not (games / split).is_dir() else split)


def _position(task: Task) -> float:
    """A number from 0 to 1 by the task's hash: the same for all games of one task in one room."""
    name = task.task_id.partition("/")[0]
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read: {error.strerror}. Give this user the right to read it, or move it out "
            "of the data."
        ) from error


class _DamagedGame(Exception):
    """A game with invalid files, usually because it was written or downloaded only in part."""


def _task_or_reason(traj_path: Path, folder: Path, split: str) -> Task | str:
    """The task of a game, or the reason to skip it."""
    task_id = traj_path.parent.relative_to(folder).as_posix()
    if any(word in task_id for word in _UNSUPPORTED):
        return "movable receptacle or sliced object"
    if not (game_path := traj_path.with_name(FILE_NAME)).is_file():
        return "no game file"
    if (task_type := _read_json(traj_path).get("task_type")) not in TASK_TYPES:
        return "other task type"
    game = _read_json(game_path)
    if missing := [key for key in ("pddl_problem", "solvable") if key not in game]:
        raise _DamagedGame(f"{game_path}: has no {missing[0]!r}.")
    return Task(NAME, split, task_id, task_type) if game["solvable"] else "unsolvable"


def _read_json(path: Path) -> dict[str, Any]:
    """Raises `_DamagedGame` if the file is not a JSON object, `DataError` if it cannot be read."""
    try:
        content = read_json(path)
    except DataError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        raise _DamagedGame(str(error)) from error
    if not isinstance(content, dict):
        raise _DamagedGame(f"{path}: holds {type(content).__name__}, not an object.")
    return content
