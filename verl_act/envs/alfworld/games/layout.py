"""Random layouts of ALFWorld games: a task that is possible in a room, and the position of every object."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from verl_act.envs.alfworld.games.rooms import LAMP_STANDS, LAMPS, Room, contents_of, is_held_out, receptacle_type
from verl_act.envs.alfworld.package import constants, gdict
from verl_act.settings.data import RoomSize

_TREATMENT = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
_SMALL_DISTRACTORS = 6
"""Types of distractor objects in a small game."""


@dataclass(slots=True)
class Layout:
    """A room with its objects, the start location of the agent and the task."""

    room: Room
    task_type: str
    object_type: str
    target_type: str
    """The type of the destination, or of the lamp if the task is to examine an object in light."""
    sentence: str = ""
    start: str = ""
    inside: dict[str, str] = field(default_factory=dict)
    """Object id -> receptacle id."""

    @property
    def looks(self) -> bool:
        return self.task_type == "look_at_obj_in_light"

    def signature(self) -> tuple[object, ...]:
        """Equal for games that an agent cannot tell apart."""
        placed = sorted((thing.partition("|")[0], receptacle) for thing, receptacle in self.inside.items())
        return self.room.floor_plan, self.task_type, self.object_type, self.target_type, tuple(placed)


def lay_out(rng: random.Random, room: Room, task_type: str, size: RoomSize, *, held_out: bool) -> Layout | None:
    """A random game of `task_type` in `room`, or None if the room allows none.

    `held_out` selects the held-out object-destination combinations, otherwise the training ones. No target object
    starts in a receptacle of the destination's type, so the task is never solved at the start.
    """
    choices = [choice for choice in _combinations(room, task_type) if is_held_out(*choice) == held_out]
    if not choices:
        return None
    layout = Layout(room, task_type, *rng.choice(choices))
    object_count = (2 if task_type == "pick_two_obj_and_place" else 1) + rng.choice((0, 0, 1))
    homes = [r for r in room.homes(layout.object_type) if layout.looks or receptacle_type(r) != layout.target_type]
    for _ in range(object_count):
        _put(rng, layout, layout.object_type, homes)
    if layout.looks:
        _put(rng, layout, layout.target_type, _lamp_stands(room))
    others = [t for t in room.object_types if t != layout.object_type and room.homes(t)]
    if size == "small":
        others = rng.sample(others, min(_SMALL_DISTRACTORS, len(others)))
    for other in others:
        for _ in range(1 if size == "small" else rng.choice((0, 1, 1, 2, 3))):
            _put(rng, layout, other, room.homes(other))
    layout.start = _start(rng, room)
    names = {
        "obj": layout.object_type.lower(),
        "recep": layout.target_type.lower(),
        "toggle": layout.target_type.lower(),
    }
    layout.sentence = rng.choice(gdict[task_type]["templates"]).format(**names)
    return layout


def _combinations(room: Room, task_type: str) -> list[tuple[str, str]]:
    """The object and target types for which `task_type` is possible in `room`."""
    if room.kind not in constants.GOALS_VALID[task_type]:
        return []
    objects = [t for t in room.object_types if room.homes(t)]
    if task_type == "look_at_obj_in_light":
        return [(thing, lamp) for thing in objects for lamp in LAMPS if _lamp_stands(room)]
    able, tool = _TREATMENT.get(task_type, (None, None))
    present = room.receptacle_types()
    if able is not None:
        objects = [t for t in objects if t in constants.VAL_ACTION_OBJECTS[able] and tool in present]
    fitting = {thing: [r for r in sorted(present) if thing in contents_of(r)] for thing in objects}
    return [(thing, target) for thing, targets in fitting.items() if len(targets) > 1 for target in targets]


def _lamp_stands(room: Room) -> list[str]:
    return [r for r in room.receptacles if receptacle_type(r) in LAMP_STANDS]


def _start(rng: random.Random, room: Room) -> str:
    """A location away from all receptacles: only there does the first observation list them."""
    occupied = set(room.receptacles.values())
    while (start := f"loc|{rng.randrange(-8, 9)}|{rng.randrange(-8, 9)}|{rng.randrange(4)}|30") in occupied:
        continue
    return start


def _put(rng: random.Random, layout: Layout, object_type: str, homes: list[str]) -> None:
    while True:
        thing = f"{object_type}|{rng.uniform(-4, 4):+06.2f}|{rng.uniform(0, 2):+06.2f}|{rng.uniform(-4, 4):+06.2f}"
        if thing not in layout.inside:
            layout.inside[thing] = rng.choice(homes)
            return
