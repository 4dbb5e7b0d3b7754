"""Generate ALFWorld games, for machines that cannot download the official ones: small rooms for learning, full rooms
for measuring.

Every game is won on the engine before it is written. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.game import FILE_NAME, game_from
from verl_act.envs.alfworld.game_index import SPLITS, TASK_TYPES
from verl_act.envs.alfworld.games.game_file import folder_name, game_content, traj_data
from verl_act.envs.alfworld.games.layout import Layout, lay_out
from verl_act.envs.alfworld.games.rooms import floor_plans, read_room
from verl_act.envs.alfworld.package import VERSION_FOLDER, constants
from verl_act.envs.process_pool import Failure, RunJobs, Worker, close_env, process_pool
from verl_act.errors import EngineError
from verl_act.journal import SavedResults, hash_of, journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.settings.data import GamesSettings, RoomSize

_ATTEMPTS = 1000
_STEP_LIMIT = 50
_FAILURES = 5
"""Failed layouts of one game after which generation stops: so many failures have another cause."""


@dataclass(frozen=True, slots=True)
class _Order:
    """One game to generate. `rooms` are the floor plans it may use."""

    split: str
    index: int
    seed: int
    size: RoomSize
    rooms: tuple[int, ...]
    salt: int = 0


@dataclass(frozen=True, slots=True)
class _Game:
    """A verified game: the files of its folder, and what an agent sees of it (`signature`)."""

    folder: str
    files: dict[str, str]
    room: int
    task_type: str
    steps: int
    signature: str


@writes_folder("make_games")
def make_games(settings: GamesSettings, out: str | os.PathLike[str]) -> Manifest:
    """Write verified games of each split to `out/json_2.1.1`, and a manifest next to them.

    The six task types alternate. `valid_seen` and `dev` use the rooms of the training games with new layouts;
    `valid_unseen` uses rooms and object-destination combinations that no training game has. The number of workers does
    not change the result. A layout that takes more than the time limit, or crashes its process, is replaced by another
    (see `process_pool`, also for 0). Raises `EngineError` if a game cannot be generated.
    """
    started = time.monotonic()
    games: dict[str, list[_Game]] = {}
    manifest = make_manifest("make_games", settings=settings.recorded(), seed=settings.seed)
    with (
        journal(Path(out), key_of(manifest)) as saved,
        process_pool(_Maker(), settings.workers, settings.task_timeout) as run,
        atomic_folder(out) as folder,
    ):
        seen: set[object] = set()
        for split in [split for split in SPLITS if settings.counts.get(split)]:
            orders = [
                _Order(split, index, settings.seed, settings.size, _rooms(split, index, games.get("train", ())))
                for index in range(settings.counts[split])
            ]
            made = games[split] = []
            known = SavedResults[_Game](saved, hash_of(orders), _Game)
            results = tqdm(run(orders, known), f"making {split}", len(orders))
            for order, result in zip(orders, results, strict=True):
                game = _new_game(order, result, seen, run)
                seen |= {game.signature, game.folder}
                made.append(game)
                _write(folder / VERSION_FOLDER / split / game.folder, game)
        summary = {split: _summary(made) for split, made in games.items()}
        manifest = replace(manifest, counts=summary, seconds=round(time.monotonic() - started, 1))
        write_manifest(folder, manifest)
    return manifest


def _new_game(order: _Order, result: _Game | Failure, seen: Set[object], run: RunJobs[_Order, _Game]) -> _Game:
    """The game, or a replacement if it failed on the engine, or if it equals an earlier game or has the same name.

    Such a duplicate would put one task into two splits.
    """
    failures = 0
    while isinstance(result, Failure) or result.signature in seen or result.folder in seen:
        if isinstance(result, Failure):
            failures += 1
            if failures == _FAILURES:
                raise EngineError(f"Game {order.index} of {order.split}: {failures} layouts failed; {result.reason}.")
        order = replace(order, salt=order.salt + 1)
        (result,) = run([order])
    return result


class _Maker(Worker[_Order, _Game]):
    """Generates games on one engine."""

    def __init__(self) -> None:
        self._environment = AlfworldEnvironment(max_steps=_STEP_LIMIT)  # makes its engine on first use

    def __call__(self, order: _Order) -> _Game:
        return _make(order, self._environment)

    def close(self) -> None:
        close_env(self._environment)


def _rooms(split: str, index: int, trained: Sequence[_Game]) -> tuple[int, ...]:
    """The rooms for game `index`. `valid_seen` and `dev` use the rooms of training games of the same task type."""
    task_type = TASK_TYPES[index % len(TASK_TYPES)]
    if split in ("valid_seen", "dev") and (
        known := sorted({game.room for game in trained if game.task_type == task_type})
    ):
        return tuple(known)
    kinds = sorted(constants.GOALS_VALID[task_type])
    return tuple(plan for kind in kinds for plan in floor_plans(kind, held_out=split == "valid_unseen"))


def _make(order: _Order, environment: AlfworldEnvironment) -> _Game:
    """Sample layouts until one is feasible, and verify that it can be won within the step limit."""
    rng = random.Random(f"{order.seed}/{order.split}/{order.index}/{order.salt}")
    task_type = TASK_TYPES[order.index % len(TASK_TYPES)]
    trial = f"trial_T{order.seed:08d}_{order.index:06d}_{order.salt:06d}"
    for _ in range(_ATTEMPTS):
        room = read_room(rng.choice(order.rooms), order.size)
        layout = lay_out(rng, room, task_type, order.size, held_out=order.split == "valid_unseen")
        if layout is not None:
            return _verified(layout, trial, environment)
    raise EngineError(f"No game of type {task_type} fits the rooms {order.rooms}. Generate more training games.")


def _verified(layout: Layout, trial: str, environment: AlfworldEnvironment) -> _Game:
    folder, content = f"{folder_name(layout)}/{trial}", game_content(layout, trial)
    environment.play(game_from(content, name=folder))
    plan = environment.plan() or []
    results = [environment.step(command) for command in plan]
    if not results or not results[-1].success or not all(result.admissible for result in results):
        raise EngineError(f"{folder}: the plan {plan} does not win on the engine. Please report this game.")
    content |= {"solvable": True, "walkthrough": plan}
    files = {
        FILE_NAME: json.dumps(content),
        "traj_data.json": json.dumps(traj_data(layout, trial), indent=1),
        "initial_state.pddl": content["pddl_problem"],
    }
    return _Game(folder, files, layout.room.floor_plan, layout.task_type, len(plan), repr(layout.signature()))


def _write(folder: Path, game: _Game) -> None:
    folder.mkdir(parents=True)
    for name, text in game.files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _summary(games: Sequence[_Game]) -> dict[str, Any]:
    return {
        "games": len(games),
        "rooms": len({game.room for game in games}),
        "by_task_type": dict(sorted(Counter(game.task_type for game in games).items())),
        "mean_plan_length": round(sum(game.steps for game in games) / len(games), 2),
    }
