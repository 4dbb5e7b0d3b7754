"""ScienceWorld's tasks, variations and splits, without its engine.

The variation counts and the split rule are those of the package version named here; a test compares them with the
package. Listing tasks therefore takes milliseconds and no Java.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from verl_act.envs.base import Task
from verl_act.errors import ConfigError, DataError, EnvError
from verl_act.manifest import digest

NAME = "scienceworld"
VERSION = "1.2.3"
SPLITS = ("train", "dev", "test")
_TASK_ID = re.compile(r"(.+)/(0|[1-9][0-9]{0,4})")

VARIATIONS = {
    "boil": 30,
    "melt": 30,
    "freeze": 30,
    "change-the-state-of-matter-of": 30,
    "use-thermometer": 540,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "find-animal": 300,
    "grow-plant": 126,
    "grow-fruit": 126,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "lifespan-longest-lived": 125,
    "lifespan-shortest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162,
    "mendelian-genetics-known-plant": 120,
    "mendelian-genetics-unknown-plant": 480,
}
"""Task name -> number of variations, in the package's order."""

EASY = "easy"
NO_ELECTRICAL = "noElectricalAction"
SIMPLIFICATIONS = ("teleportAction", "openDoors", "openContainers", "selfWateringFlowerPots", NO_ELECTRICAL)
"""What a preset can combine. `easy` is all but `openContainers`, without `noElectricalAction` in electrical tasks."""


def list_tasks(
    split: str, tasks: Iterable[str] | None = None, simplification: str = EASY, **_: Any
) -> tuple[Task, ...]:
    """Every variation of `split` once, of all tasks or of the given ones, in the package's order.

    Task ids are `boil/12`: the task's name, which is its type, and the variation. Other environment settings are
    accepted and ignored. Raises `DataError` for an unknown split, `ConfigError` for
    unknown tasks or simplifications, or a task that the simplification excludes.
    """
    if split not in SPLITS:
        raise DataError(f"ScienceWorld has no split {split!r}; it has {', '.join(SPLITS)}.")
    names = task_names(tasks)
    check_simplification(simplification)
    for name in names:
        if not playable(name, simplification):
            raise ConfigError(
                f"The simplification {NO_ELECTRICAL!r} takes away what {name!r} is about. Leave the task out by "
                f"naming others as `tasks`, or use {EASY!r}, which spares such tasks."
            )
    return _listed(split, names)


def data_digest(*_: Any, **__: Any) -> str:
    """SHA-256 of the package's engine, which holds the tasks."""
    from scienceworld.constants import JAR_PATH

    return digest(JAR_PATH)


def task_names(tasks: Iterable[str] | None) -> tuple[str, ...]:
    """`tasks` in the package's order, each once; all if None. Raises `ConfigError` if one is unknown."""
    if tasks is None:
        return tuple(VARIATIONS)
    requested = {tasks} if isinstance(tasks, str) else set(tasks)
    if unknown := requested - VARIATIONS.keys():
        raise ConfigError(f"ScienceWorld has no task {min(unknown)!r}; it has {', '.join(VARIATIONS)}.")
    if not requested:
        raise ConfigError("The setting `tasks` is empty. Name at least one task, or leave it out for all.")
    return tuple(name for name in VARIATIONS if name in requested)


def check_simplification(preset: str) -> None:
    """Raises `ConfigError` unless `preset` is `easy`, empty, or some of `SIMPLIFICATIONS` joined by commas."""
    for option in preset.split(",") if preset else ():
        if option not in SIMPLIFICATIONS and preset != EASY:
            raise ConfigError(
                f"{preset!r} is not a simplification of ScienceWorld. Give {EASY!r}, '' for none, or some of "
                f"{', '.join(SIMPLIFICATIONS)}, joined by commas without spaces."
            )


def playable(name: str, simplification: str) -> bool:
    """Whether the task can be solved under the preset."""
    electrical = "power-component" in name or "conductivity" in name
    return not (electrical and NO_ELECTRICAL in simplification)


def variations(name: str, split: str) -> range:
    """The variations of a task in `split`: a half, a quarter and a quarter, in order, as in the package."""
    quarter = VARIATIONS[name] // 4
    bounds = {"train": (0, 2), "dev": (2, 3), "test": (3, 5)}[split]  # the fifth "quarter" is the remainder
    return range(bounds[0] * quarter, min(bounds[1] * quarter, VARIATIONS[name]))


def name_and_variation(task: Task) -> tuple[str, int]:
    """The engine's name and variation of `task`. Raises `EnvError` if it is not a ScienceWorld task of its split."""
    match = _TASK_ID.fullmatch(task.task_id)
    if task.env != NAME or task.split not in SPLITS or match is None or match[1] not in VARIATIONS:
        raise EnvError(
            f"{task}: is not a ScienceWorld task. Ids are like 'boil/12', splits {', '.join(SPLITS)}; "
            f"`list_tasks` has them all."
        )
    name, variation = match[1], int(match[2])
    available = variations(name, task.split)
    if variation not in available:
        raise EnvError(f"{task}: {task.split} holds variations {available.start} to {available.stop - 1} of {name}.")
    return name, variation


@lru_cache(maxsize=32)
def _listed(split: str, names: tuple[str, ...]) -> tuple[Task, ...]:
    return tuple(
        Task(NAME, split, f"{name}/{variation}", name) for name in names for variation in variations(name, split)
    )
