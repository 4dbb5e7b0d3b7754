"""The rooms of generated ALFWorld games: those of AI2-THOR's 120 floor plans that the alfworld package ships.

A room is the same in all its games; only the objects move. Rooms and object-receptacle combinations have a fixed
split into training and held out, so that out-of-distribution games share neither with training.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from verl_act.envs.alfworld.package import alfworld, constants
from verl_act.settings.data import RoomSize

HELD_OUT_ROOMS = frozenset({10, 28, 29, 30, 219, 228, 229, 230, 308, 328, 329, 330, 424, 428, 429, 430})
"""ALFRED's four validation-unseen floor plans and the last three of each kind of room."""

LAMPS = ("DeskLamp", "FloorLamp")
LAMP_STANDS = ("Desk", "SideTable", "Dresser", "CoffeeTable", "DiningTable", "Shelf", "TVStand")
_SMALL = 9
"""Number of receptacles in a small room."""
_ESSENTIAL = {"Kitchen": ("Microwave", "Fridge", "SinkBasin"), "Bathroom": ("SinkBasin",)}

# Type -> count. The floor plans list these types among their objects, but without a position for the agent.
_UNPLACED = {
    "StoveBurner": 4,
    "CoffeeMachine": 1,
    "Toaster": 1,
    "ToiletPaperHanger": 1,
    "TowelHolder": 1,
    "HandTowelHolder": 2,
    "GarbageCan": 1,
    "LaundryHamper": 1,
}
_FIXED = frozenset({*LAMPS, "Television", "Sink", "Bathtub", "HousePlant", "Window", "Mirror"})
_MOVABLE = frozenset(constants.MOVABLE_RECEPTACLES)


@dataclass(frozen=True, slots=True)
class Room:
    """A floor plan: its receptacles, the agent's location at each, and the object types that belong in it."""

    floor_plan: int
    """AI2-THOR's number."""
    kind: str
    """`Kitchen`, `LivingRoom`, `Bedroom` or `Bathroom`."""
    receptacles: dict[str, str]
    """Receptacle id -> location id."""
    object_types: tuple[str, ...]
    """Types of objects that can be picked up."""

    def receptacle_types(self) -> set[str]:
        return {receptacle_type(receptacle) for receptacle in self.receptacles}

    def homes(self, object_type: str) -> list[str]:
        """The receptacles that may hold an object of this type."""
        return [r for r in self.receptacles if object_type in contents_of(receptacle_type(r))]


def receptacle_type(receptacle: str) -> str:
    """`SinkBasin` of `Sink|-01.90|+00.97|-01.50|SinkBasin`, `Desk` of `Desk|...`."""
    parts = receptacle.split("|")
    return parts[4] if len(parts) > 4 else parts[0]


@cache
def contents_of(receptacle: str) -> frozenset[str]:
    """The object types that a receptacle type may hold, according to ALFWorld's table."""
    return frozenset(constants.VAL_RECEPTACLE_OBJECTS.get(receptacle, ())) & frozenset(constants.OBJECTS_SET)


def is_held_out(object_type: str, target_type: str) -> bool:
    """Whether a combination of object and destination (or lamp) type is held out: one in five is."""
    return hashlib.sha256(f"{object_type}|{target_type}".encode()).digest()[0] % 5 == 0


def floor_plans(kind: str, *, held_out: bool) -> list[int]:
    """The numbers of the floor plans of a kind of room, in order."""
    return [plan for plan in constants.SCENE_TYPE[kind] if (plan in HELD_OUT_ROOMS) == held_out]


@cache
def read_room(floor_plan: int, size: RoomSize) -> Room:
    """Read a floor plan. A small room keeps nine receptacles, of as many types as possible."""
    layouts = Path(next(iter(alfworld.gen.__path__))) / "layouts"
    rng = random.Random(f"room {floor_plan}")
    kind = next(kind for kind, plans in constants.SCENE_TYPE.items() if floor_plan in plans)
    types = sorted(set(json.loads((layouts / f"FloorPlan{floor_plan}-objects.json").read_text(encoding="utf-8"))))
    poses = json.loads((layouts / f"FloorPlan{floor_plan}-openable.json").read_text(encoding="utf-8"))
    known = set(constants.RECEPTACLES) - _MOVABLE
    receptacles = {
        name: _location(x, z, rotation // 90, horizon)
        for name, (x, z, rotation, horizon) in sorted(poses.items())
        if receptacle_type(name) in known
    }
    present = {receptacle_type(name) for name in receptacles}
    for unplaced, count in _UNPLACED.items():
        for _ in range(count if unplaced in types and unplaced not in present else 0):
            x, z = rng.uniform(-3, 3), rng.uniform(-3, 3)
            receptacles[f"{unplaced}|{x:+06.2f}|+00.90|{z:+06.2f}"] = _location(x, z, rng.randrange(4), 30)
    if size == "small":
        receptacles = {name: receptacles[name] for name in _choose(rng, kind, sorted(receptacles))}
    objects = tuple(
        t for t in types if t in constants.OBJECTS_SET and t not in constants.RECEPTACLES and t not in _FIXED
    )
    movable = tuple(t for t in types if t in _MOVABLE)
    return Room(floor_plan, kind, dict(sorted(receptacles.items())), tuple(sorted(objects + movable)))


def _choose(rng: random.Random, kind: str, names: list[str]) -> list[str]:
    """Choose nine receptacles: those that the room's tasks need, then one of each type, then others."""
    rng.shuffle(names)
    essential = _ESSENTIAL.get(kind, LAMP_STANDS)
    seen: set[str] = set()

    def rank(name: str) -> tuple[bool, bool]:
        repeated = receptacle_type(name) in seen
        seen.add(receptacle_type(name))
        return repeated, receptacle_type(name) not in essential

    return sorted(names, key=rank)[:_SMALL]


def _location(x: float, z: float, rotation: float, horizon: float) -> str:
    return f"loc|{round(x * 4)}|{round(z * 4)}|{int(rotation)}|{int(horizon)}"
