"""Parses the goal of a game from its PDDL."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TREATMENTS = ("isclean", "ishot", "iscool")
_PLACE = frozenset({"objecttype", "receptacletype", "inreceptacle", "cleanable", "heatable", "coolable", *_TREATMENTS})
_LOOK = frozenset(
    {"objecttype", "toggleable", "istoggled", "receptacleatlocation", "atlocation", "inreceptacle", "holds"}
)
_CONNECTIVES = frozenset({"goal", "and", "exists", "not"})


@dataclass(frozen=True, slots=True)
class PlaceGoal:
    """`count` different objects of a type in one receptacle of a type, each with the treatment (`isclean`, ...), if
    any.
    """

    object_type: str
    receptacle_type: str
    treatment: str | None
    count: int


@dataclass(frozen=True, slots=True)
class LookGoal:
    """An object of a type held next to a lamp of a type that has been switched on."""

    object_type: str
    lamp_type: str


Goal = PlaceGoal | LookGoal


def parse_goal(problem: str) -> Goal | None:
    """The goal of a PDDL `problem`; None if it is none of ALFWorld's six kinds (sliced and movable objects)."""
    text = problem.lower().partition("(:goal")[2]
    predicates = set(re.findall(r"\(([a-z]+)", text)) - _CONNECTIVES
    receptacles = set(re.findall(r"\(receptacletype \?\w+ (\w+)\)", text))
    objects = dict(re.findall(r"\(objecttype \?(\w+) (\w+)\)", text))
    if "istoggled" in predicates:
        lamps = set(re.findall(r"\(istoggled \?(\w+)\)", text))
        held = set(re.findall(r"\(holds \?\w+ \?(\w+)\)", text))
        if predicates <= _LOOK and len(lamps) == len(held) == 1 and (lamps | held) <= objects.keys():
            return LookGoal(objects[held.pop()], objects[lamps.pop()])
        return None
    treatments = predicates.intersection(_TREATMENTS)
    if predicates <= _PLACE and len(receptacles) == 1 and len(set(objects.values())) == 1 and len(treatments) <= 1:
        treatment = treatments.pop() if treatments else None
        return PlaceGoal(next(iter(objects.values())), receptacles.pop(), treatment, len(objects))
    return None
