"""Generated ALFWorld games, for where the official ones cannot be downloaded: small rooms to learn in, full ones to
measure.

Every game is played to its end on the engine before it is written. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_act.data_prep.process_pool import Failure, RunJobs, close_env, process_pool
from verl_act.envs.alfworld.data import SPLITS, TASK_TYPES, VERSION_FOLDER
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.alfworld.game import FILE_NAME, game_from
from verl_act.envs.alfworld.games.game_file import folder_name, game_content, traj_data
from verl_act.envs.alfworld.games.layout import Layout, lay_out
from verl_act.envs.alfworld.games.rooms import Size, read_room, room_numbers
from verl_act.envs.alfworld.package import constants
from verl_act.errors import EngineError, OptionError
from verl_act.journal import SavedResults, hash_of, journal, key_of
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.options import Count, Seed, check_options
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.process import TASK_TIMEOUT

_ATTEMPTS = 1000
_STEP_LIMIT = 50
_FAILURES = 5
"""Layouts of one game at which the engine fails, in a row: more say that something else is wrong."""


@dataclass(frozen=True, slots=True)
class _Order:
    """One game to make. `rooms` are the floor plans it may play in."""

    split: str
    index: int
    seed: int
    size: Size
    rooms: tuple[int, ...]
    salt: int = 0


@dataclass(frozen=True, slots=True)
class _Game:
    """A verified game: the files of its folder, and what it looks like to an agent."""

    folder: str
    files: dict[str, str]
    room: int
    task_type: str
    steps: int
    signature: str


@writes_folder("make_games")
def make_games(
    out: str | os.PathLike[str],
    *,
    counts: Mapping[str, int],
    seed: int = 0,
    size: Size = "small",
    workers: int = 0,
    task_timeout: float = TASK_TIMEOUT,
    progress: bool = True,
) -> Manifest:
    """Write `counts[split]` verified games a split to `out/json_2.1.1`, and return the manifest written beside them.

    The six task types take turns. `valid_seen` plays in rooms of the training games, with new layouts;
    `valid_unseen` in rooms and with object-destination combinations that no training game has. `size` is `small`
    (nine receptacles, about eight objects) or `full` (the whole floor plan). `workers` processes share the work and
    do not change the result; a layout that takes one of them more than `task_timeout` seconds, or ends it, is replaced
    by another (see `process_pool`, also for 0). Raises `ConfigError` for an unknown split or size, and `EngineError`
    where a game cannot be made.
    """
    check_settings(counts=counts, size=size, seed=seed, workers=workers)
    started = time.monotonic()
    games: dict[str, list[_Game]] = {}
    manifest = make_manifest("make_games", settings={"counts": dict(counts), "size": size}, seed=seed)
    with (
        journal(Path(out), key_of(manifest)) as saved,
        process_pool(_Maker(), workers, task_timeout) as run,
        atomic_folder(out) as folder,
    ):
        seen: set[object] = set()
        for split in [split for split in SPLITS if counts.get(split)]:
            orders = [
                _Order(split, index, seed, size, _rooms(split, index, games.get("train", ())))
                for index in range(counts[split])
            ]
            made = games[split] = []
            known = SavedResults[_Game](saved, hash_of(orders), _Game)
            results = tqdm(run(orders, known), split, len(orders), disable=not progress)
            for order, result in zip(orders, results, strict=True):
                game = _new_game(order, result, seen, run)
                seen |= {game.signature, game.folder}
                made.append(game)
                _write(folder / VERSION_FOLDER / split / game.folder, game)
        summary = {split: _summary(made) for split, made in games.items()}
        manifest = replace(manifest, counts=summary, seconds=round(time.monotonic() - started, 1))
        write_manifest(folder, manifest)
    return manifest


def check_settings(*, counts: Mapping[str, Count], size: Size = "small", seed: Seed = 0, workers: Count = 1) -> None:
    """Raise `ConfigError` for a setting that cannot work."""
    check_options(check_settings, {"counts": counts, "size": size, "seed": seed, "workers": workers})
    if set(counts) - set(SPLITS) or not any(counts.values()):
        raise OptionError("counts", f"is {dict(counts)}; give a number of games for some of {', '.join(SPLITS)}.")


def _new_game(order: _Order, result: _Game | Failure, seen: Set[object], run: RunJobs[_Order, _Game]) -> _Game:
    """The game, or another of its order where the engine fails at it, or where it is a twin of an earlier game or has
    its name: its task would seem to be in two splits.
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


class _Maker:
    """Makes one game after another on one engine."""

    @cached_property
    def _environment(self) -> AlfworldEnvironment:
        return AlfworldEnvironment(max_steps=_STEP_LIMIT)

    def prepare(self) -> None:
        pass

    def __call__(self, order: _Order) -> _Game:
        return _make(order, self._environment)

    def close(self) -> None:
        if (environment := self.__dict__.pop("_environment", None)) is not None:
            close_env(environment)


def _rooms(split: str, index: int, trained: Sequence[_Game]) -> tuple[int, ...]:
    """The rooms where game `index` may play; those of `valid_seen` have been trained in, on the same task type."""
    task_type = TASK_TYPES[index % len(TASK_TYPES)]
    if split == "valid_seen" and (known := sorted({game.room for game in trained if game.task_type == task_type})):
        return tuple(known)
    kinds = sorted(constants.GOALS_VALID[task_type])
    return tuple(number for kind in kinds for number in room_numbers(kind, held_out=split == "valid_unseen"))


def _make(order: _Order, environment: AlfworldEnvironment) -> _Game:
    """Draw layouts until one is feasible, and prove that it can be won within the step limit."""
    rng = random.Random(f"{order.seed}/{order.split}/{order.index}/{order.salt}")
    task_type = TASK_TYPES[order.index % len(TASK_TYPES)]
    trial = f"trial_T{order.seed:08d}_{order.index:06d}_{order.salt:06d}"
    for _ in range(_ATTEMPTS):
        room = read_room(rng.choice(order.rooms), order.size)
        layout = lay_out(rng, room, task_type, order.size, held_out=order.split == "valid_unseen")
        if layout is not None:
            return _verified(layout, trial, environment)
    raise EngineError(f"No game of type {task_type} fits the rooms {order.rooms}. Ask for more training games.")


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
    return _Game(folder, files, layout.room.number, layout.task_type, len(plan), repr(layout.signature()))


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
