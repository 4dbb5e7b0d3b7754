"""One game on the Java engine: its actions and answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from verl_act.envs.scienceworld.server import engine
from verl_act.errors import EnvError

Meaning = tuple[int, tuple[int, ...]]
"""What an action does, independent of its wording: the engine's ids of its kind and of its objects, in order."""

_RESET = "reset task"
"""Listed by the engine but not by us: it undoes all progress."""

_ORDER = ("obj", "device", "terminalA", "moveTo", "patient", "terminalB", "moveFrom")
"""The engine's names for an action's objects in the order of its own list; other names occur alone."""

_TELEPORT, _TELEPORT_KIND = "teleport ", -1
"""Reaches every location; the engine gives it the id of walking."""

_CHOICE = 100
"""Kinds from this id on are the numbered answers to a question of the engine."""


class Interpretation(NamedTuple):
    """One interpretation of a text. `possible` is the engine's own check of whether it can be done now."""

    meaning: Meaning
    possible: bool


class Answer(NamedTuple):
    """The engine's answer to one text. `score` is 0 to 100, or negative if the task has failed for good."""

    text: str
    score: int
    completed: bool


@dataclass(frozen=True, slots=True)
class ActionMenu:
    """The actions possible now, without those on objects out of reach."""

    actions: tuple[str, ...] = ()
    """In alphabetical order; or the numbers that answer the engine's question, in the engine's order."""
    understood: frozenset[str] = frozenset()
    """`actions` and the entries that are not listed."""
    names: dict[Meaning, str] = field(default_factory=dict)

    def name_of(self, meaning: Meaning) -> str | None:
        """The entry with this meaning, if any."""
        kind, objects = meaning
        # Picking up and putting down also name the destination, which entries leave out.
        return self.names.get(meaning) or self.names.get((kind, objects[:1]))


class Game:
    """One game at a time; `load` starts the next. The games of a process share the engine, `MOST_GAMES` of them."""

    def __init__(self) -> None:
        """Raises `NoRoom` if the engine has no capacity for another."""
        self._engine = engine()
        self._engine.admit(self)
        self._globals = self._engine.globals()
        with self._engine.turn(self._globals):
            self._interface = self._engine.interface()

    def load(self, name: str, variation: int, simplification: str) -> Answer:
        """Start a task and look around, as the package does. Raises `EnvError` if the engine refuses."""
        with self._engine.turn(self._globals):
            self._start(name, variation, simplification, False)
            self._globals.simplifications = self._agent_interface().simplificationStr()
            return self.say("look around")

    def alive(self) -> bool:
        """Whether its engine is alive."""
        return self._engine.alive()

    def goal(self) -> str:
        """The task's description."""
        with self._engine.turn(self._globals):
            return str(self._interface.getTaskDescription())

    def say(self, text: str) -> Answer:
        """Take a step. Raises `EnvError` if the engine failed at this step or the one before."""
        with self._engine.turn(self._globals):
            answer = self._interface.step(text)
            score = round(100 * self._interface.getScore())
            # The engine reports its own failures as the lowest score, from the next step on.
            if score < 0 and self._agent_interface().isInErrorState():
                raise EnvError(f"ScienceWorld's engine has failed: {self._agent_interface().getErrorStateMessage()}")
            return Answer(answer.strip(), score, self._interface.getCompleted())

    def menu(self) -> ActionMenu:
        """The actions possible now. Does not change the game."""
        with self._engine.turn(self._globals):
            with self._engine.aside(self._globals):
                listed = json.loads(self._interface.getValidActionObjectCombinationsJSON())["validActions"]
            within_reach = self._within_reach()
        reachable = [
            entry
            for entry in listed
            if entry["template_id"] >= _CHOICE
            or entry["action"].startswith(_TELEPORT)
            or within_reach.issuperset(entry["obj_ids"])
        ]
        texts = [entry["action"] for entry in reachable]
        names = {(_kind(entry), tuple(entry["obj_ids"])): entry["action"] for entry in reversed(reachable)}
        is_question = bool(listed) and listed[0]["template_id"] >= _CHOICE
        offered = texts if is_question else sorted(set(texts) - {_RESET})
        return ActionMenu(tuple(offered), frozenset(texts), names)

    def readings(self, text: str) -> list[Interpretation]:
        """The interpretations of `text`: none, one, or those between which the engine would ask to choose."""
        with self._engine.turn(self._globals):
            outer = self._agent_interface()
            agent, parser = outer.agent(), outer.inputParser()
            if parser.isInAmbiguousState():
                return []  # only a number is understood now
            room, noted = agent.getContainer().get(), (outer.objMonitor(), outer.task().goalSequence())
            action = parser.parse(text, room, outer.universe(), agent, *noted, room)._4()
            if action.isDefined():
                return [self._reading(action.get())]
            if not parser.isInAmbiguousState():
                return []
            matches = parser.lastAmbiguousMatches().get()
            parser.clearAmbiguousState()
            return [self._reading(self._engine.as_action(match, *noted, agent)) for match in matches]

    def solve(self, name: str, variation: int, simplification: str) -> tuple[str, ...]:
        """The package's own solution of a task. Computing it plays the task, so load a task afterwards."""
        with self._engine.turn(self._globals):
            self._engine.forget_routes()
            self._start(name, variation, simplification, True)
            return self._engine.lines(self._interface.getGoldActionSequence())

    def _start(self, name: str, variation: int, simplification: str, solve: bool) -> None:
        refusal = self._interface.load(name, variation, simplification, solve)
        if refusal:
            raise EnvError(f"ScienceWorld does not load {name}, variation {variation}: {refusal}")

    def _agent_interface(self) -> Any:
        return self._interface.agentInterface().get()

    def _reading(self, action: Any) -> Interpretation:
        objects = action.assignments()
        names = [name for name in objects.keys().mkString(",").split(",") if name != "agent"]
        names.sort(key=lambda name: _ORDER.index(name) if name in _ORDER else 0)
        kind = _TELEPORT_KIND if action.name().startswith(_TELEPORT.strip()) else action.action().uniqueActionID()
        meaning = kind, tuple(objects.apply(name).uuid() for name in names)
        return Interpretation(meaning, self._engine.companion(action).isValidAction(objects)._2())

    def _within_reach(self) -> set[int]:
        """The ids of all objects that the engine accepts in an action now."""
        agent_interface = self._agent_interface()
        agent, parser = agent_interface.agent(), agent_interface.inputParser()
        numbers: set[int] = set()
        for holder in (agent.getContainer().get(), agent):
            text = parser.getAllUniqueReferentsLUT(holder, True, False).keys().mkString(",")
            numbers.update(map(int, text.split(",")) if text else ())
        return numbers


def _kind(entry: dict[str, Any]) -> int:
    return _TELEPORT_KIND if entry["action"].startswith(_TELEPORT) else entry["template_id"]


@lru_cache(maxsize=256)
def gold_path(name: str, variation: int, simplification: str) -> tuple[str, ...]:
    """The actions of the package's own solution of a task, in its wording (privileged). Takes 0.1 to 10 seconds."""
    return Game().solve(name, variation, simplification)
