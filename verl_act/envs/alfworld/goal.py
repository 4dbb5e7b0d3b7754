"""Parses the goal of a game, from its task sentence or from its PDDL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_THING = r"(?P<thing>[a-z]+)"
_TARGET = r"(?P<target>[a-z]+)"
_SENTENCES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"put (?:two|(?:a|some)(?: (?P<state>clean|hot|cool))?) {_THING} (?:in|on) {_TARGET}",
        rf"(?P<state>clean|heat|cool) some {_THING} and put it in {_TARGET}",
        rf"find two {_THING} and put them in {_TARGET}",
    )
)
_LOOK_SENTENCE = re.compile(
    rf"(?:look at {_THING} under the|examine the {_THING.replace('thing', 'object')} with the) {_TARGET}"
)
_VERBS = {"clean": "clean", "hot": "heat", "heat": "heat", "cool": "cool"}

_STATES = {"isclean": "clean", "ishot": "heat", "iscool": "cool"}
_PLACE = frozenset({"objecttype", "receptacletype", "inreceptacle", "cleanable", "heatable", "coolable", *_STATES})
_LOOK = frozenset(
    {"objecttype", "toggleable", "istoggled", "receptacleatlocation", "atlocation", "inreceptacle", "holds"}
)
_CONNECTIVES = frozenset({"goal", "and", "exists", "not"})


@dataclass(frozen=True, slots=True)
class Goal:
    """`count` different things of kind `thing`, treated by `verb` (`clean`, `heat`, `cool`; if any), in one receptacle
    of kind `target`; or, with `look`, one held next to a lamp of that kind that is on.

    A kind is spelled as in the source: `mug` in a sentence, `mugtype` in PDDL.
    """

    thing: str
    target: str
    verb: str | None = None
    count: int = 1
    look: bool = False


def parse_sentence(sentence: str) -> Goal | None:
    """Parse a sentence such as `put a clean mug in desk`; None if it follows none of ALFWorld's templates."""
    text = sentence.strip().removesuffix(".").lower()
    if match := _LOOK_SENTENCE.fullmatch(text):
        return Goal(match["thing"] or match["object"], match["target"], look=True)
    for pattern in _SENTENCES:
        if match := pattern.fullmatch(text):
            verb = _VERBS.get(match.groupdict().get("state") or "")
            return Goal(match["thing"], match["target"], verb, 2 if " two " in text else 1)
    return None


@lru_cache(maxsize=128)
def parse_problem(problem: str) -> Goal | None:
    """The goal of a PDDL `problem`; None if it is none of ALFWorld's six kinds (sliced and movable objects)."""
    text = problem.lower().partition("(:goal")[2]
    predicates = set(re.findall(r"\(([a-z]+)", text)) - _CONNECTIVES
    receptacles = set(re.findall(r"\(receptacletype \?\w+ (\w+)\)", text))
    objects = dict(re.findall(r"\(objecttype \?(\w+) (\w+)\)", text))
    if "istoggled" in predicates:
        lamps = set(re.findall(r"\(istoggled \?(\w+)\)", text))
        held = set(re.findall(r"\(holds \?\w+ \?(\w+)\)", text))
        if predicates <= _LOOK and len(lamps) == len(held) == 1 and (lamps | held) <= objects.keys():
            return Goal(objects[held.pop()], objects[lamps.pop()], look=True)
        return None
    verbs = [verb for state, verb in _STATES.items() if state in predicates]
    if predicates <= _PLACE and len(receptacles) == 1 and len(set(objects.values())) == 1 and len(verbs) <= 1:
        return Goal(next(iter(objects.values())), receptacles.pop(), next(iter(verbs), None), len(objects))
    return None
