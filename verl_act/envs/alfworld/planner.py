"""The exact number of actions that are left, from the structure of ALFWorld's tasks instead of a general planner.

Fast Downward needs about 0.1 s for a plan that need not be the shortest; data preparation asks thousands of times.
In ALFWorld only a few things matter: where the agent is, what it holds, which receptacles are open, and where the
objects of the goal's type are. A* over *events* (take, put, treat, switch) finds the shortest plan in about a
millisecond. Walking costs one action between any two places, so receptacles at places that play no part are alike
but for being closed, and one of a kind is enough.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from verl_act.envs.alfworld.engine import Engine
from verl_act.envs.alfworld.facts import Facts
from verl_act.envs.alfworld.game import CompiledGame
from verl_act.envs.alfworld.goal import LookGoal, PlaceGoal, parse_goal

_TREATMENTS = {
    "isclean": ("cleanobject", "cleanable", "sinkbasintype"),
    "ishot": ("heatobject", "heatable", "microwavetype"),
    "iscool": ("coolobject", "coolable", "fridgetype"),
}
"""Treated state -> the domain's action, what the object must be, and the type of receptacle that does it."""


class _Action(NamedTuple):
    """An action of the domain, by what its command names."""

    name: str
    receptacle: str
    thing: str = ""

    def command(self, game: CompiledGame) -> str:
        """What the agent types, in the game's own words."""
        thing = {("o", "object"): self.thing} if self.thing else {}
        return game.command(self.name, {("r", "receptacle"): self.receptacle, **thing})


class _State(NamedTuple):
    """All that matters for the goal. `placed` holds the objects of the goal's type only."""

    place: str
    held: str | None
    opened: frozenset[str]
    placed: frozenset[tuple[str, str]]
    treated: frozenset[str]
    switched: frozenset[str]


class _Event(NamedTuple):
    """One manipulation, with the walking and opening that it needs."""

    actions: tuple[_Action, ...]
    after: _State


class Planner:
    """Plans for the game that `engine` has loaded."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._goal = parse_goal(engine.game.file.problem)

    def plan(self) -> list[str] | None:
        """The fewest commands that win from the current state; None where there is no way.

        For other goals than the six task types' this is Fast Downward's plan, which is not always the shortest.
        """
        if self._goal is None:
            return self._engine.replan()
        actions = _Search(self._goal, self._engine.facts).run()
        return None if actions is None else [action.command(self._engine.game) for action in actions]


class _Search:
    """One search, from the state that `facts` describe."""

    def __init__(self, goal: PlaceGoal | LookGoal, facts: Facts) -> None:
        self._goal = goal
        self._place_of = _pairs(facts, "receptacleatlocation")
        self._types = _pairs(facts, "objecttype")
        self._receptacle_types = _pairs(facts, "receptacletype")
        self._can_contain = set(facts.get("cancontain", ()))
        self._openable = _column(facts, "openable")
        treatment = _TREATMENTS.get(goal.treatment or "") if isinstance(goal, PlaceGoal) else None
        self._treat, able, tool_type = treatment or ("", "", "")
        targets = {thing for thing, kind in self._types.items() if kind == goal.object_type}
        self._targets = targets & _column(facts, able) if able else targets
        self._tools = [r for r, kind in self._receptacle_types.items() if kind == tool_type and r in self._place_of]
        lamp_type = goal.lamp_type if isinstance(goal, LookGoal) else None
        self._lamps = [
            (thing, r)
            for thing, r in facts.get("inreceptacle", ())
            if self._types.get(thing) == lamp_type and (thing,) in facts.get("toggleable", ()) and r in self._place_of
        ]
        self._pickupable = _column(facts, "pickupable")
        self._start = _State(
            place=facts["atlocation"][0][1],
            held=next((thing for _, thing in facts.get("holds", ())), None),
            opened=_column(facts, "opened"),
            placed=frozenset((thing, r) for thing, r in facts.get("inreceptacle", ()) if thing in self._targets),
            treated=_column(facts, goal.treatment or "") if isinstance(goal, PlaceGoal) else frozenset(),
            switched=_column(facts, "istoggled"),
        )
        self._receptacles = self._representatives()

    def run(self) -> list[_Action] | None:
        """A* from the start; ties are broken by age, so that the same state gives the same plan."""
        age = count()
        queue = [(self._bound(self._start), next(age), 0, self._start)]
        reached: dict[_State, tuple[int, _State | None, tuple[_Action, ...]]] = {self._start: (0, None, ())}
        while queue:
            _, _, cost, state = heapq.heappop(queue)
            if cost > reached[state][0]:
                continue
            if self._is_goal(state):
                return _walk_back(reached, state)
            for actions, after in self._events(state):
                after_cost = cost + len(actions)
                if after not in reached or after_cost < reached[after][0]:
                    reached[after] = (after_cost, state, actions)
                    heapq.heappush(queue, (after_cost + self._bound(after), next(age), after_cost, after))
        return None

    def _representatives(self) -> list[str]:
        """The receptacles worth putting something into: all at places that play a part, else one of each kind."""
        start = self._start
        involved = {start.place, *(self._place_of[r] for _, r in start.placed if r in self._place_of)}
        involved |= {self._place_of[r] for r in self._tools} | {self._place_of[r] for _, r in self._lamps}
        kinds = {self._goal.object_type} | ({self._types[start.held]} if start.held else set())
        chosen, seen = [], set()
        for receptacle in sorted(self._place_of):
            kind = self._receptacle_types[receptacle]
            alike = (
                kind == getattr(self._goal, "receptacle_type", None),
                self._needs_opening(receptacle, start),
                *((kind, content) in self._can_contain for content in sorted(kinds)),
            )
            if self._place_of[receptacle] in involved or alike not in seen:
                chosen.append(receptacle)
            if self._place_of[receptacle] not in involved:
                seen.add(alike)
        return chosen

    def _events(self, state: _State) -> Iterator[_Event]:
        held = state.held
        if held is None:
            for thing, r in sorted(state.placed):
                if thing in self._pickupable and r in self._place_of:
                    after = state._replace(held=thing, placed=state.placed - {(thing, r)})
                    yield self._at(r, state, after, _Action("pickupobject", r, thing))
        else:
            for r in self._receptacles:
                if (self._receptacle_types[r], self._types[held]) in self._can_contain:
                    placed = state.placed | {(held, r)} if held in self._targets else state.placed
                    after = state._replace(held=None, placed=placed)
                    yield self._at(r, state, after, _Action("putobject", r, held))
            if held in self._targets and held not in state.treated:
                for r in self._tools:
                    after = state._replace(treated=state.treated | {held})
                    yield self._at(r, state, after, _Action(self._treat, r, held), inside=False)
        for lamp, r in self._lamps:
            if lamp not in state.switched:
                after = state._replace(switched=state.switched | {lamp})
                yield self._at(r, state, after, _Action("toggleobject", r, lamp), inside=False)
            elif state.place != self._place_of[r]:
                yield self._at(r, state, state, None, inside=False)

    def _at(self, r: str, state: _State, after: _State, action: _Action | None, *, inside: bool = True) -> _Event:
        actions = [_Action("gotolocation", r)] if state.place != self._place_of[r] else []
        after = after._replace(place=self._place_of[r])
        if inside and self._needs_opening(r, state):
            actions.append(_Action("openobject", r))
            after = after._replace(opened=state.opened | {r})
        return _Event((*actions, action) if action else tuple(actions), after)

    def _needs_opening(self, receptacle: str, state: _State) -> bool:
        return receptacle in self._openable and receptacle not in state.opened

    def _done_at(self, receptacle: str, state: _State) -> int:
        """How many finished objects lie in a receptacle."""
        treated = state.treated if self._treat else self._targets
        return sum(1 for thing, r in state.placed if r == receptacle and thing in treated)

    def _is_goal(self, state: _State) -> bool:
        goal = self._goal
        if isinstance(goal, LookGoal):
            lit = {self._place_of[r] for lamp, r in self._lamps if lamp in state.switched}
            return state.held in self._targets and state.place in lit
        return any(
            self._done_at(r, state) >= goal.count
            for r in {r for _, r in state.placed}
            if self._receptacle_types[r] == goal.receptacle_type
        )

    def _bound(self, state: _State) -> int:
        """Manipulations still needed at least: never more than the actions that are left."""
        goal, held_target = self._goal, state.held in self._targets
        to_take = 0 if held_target else 1 + (state.held is not None)
        if isinstance(goal, LookGoal):
            lit = any(lamp in state.switched for lamp, _ in self._lamps)
            return to_take + (not lit)
        full = max(
            (self._done_at(r, state) for _, r in state.placed if self._receptacle_types[r] == goal.receptacle_type),
            default=0,
        )
        missing = goal.count - full
        if missing <= 0:
            return 0
        untreated = bool(self._treat) and not any(thing in state.treated for thing in self._targets)
        return to_take + 2 * missing - 1 + untreated


def _column(facts: Facts, predicate: str) -> frozenset[str]:
    return frozenset(row[0] for row in facts.get(predicate, ()))


def _pairs(facts: Facts, predicate: str) -> dict[str, str]:
    return {first: second for first, second in facts.get(predicate, ())}


def _walk_back(
    reached: dict[_State, tuple[int, _State | None, tuple[_Action, ...]]], state: _State | None
) -> list[_Action]:
    parts: list[tuple[_Action, ...]] = []
    while state is not None:
        _, state, actions = reached[state]
        parts.append(actions)
    return [action for part in reversed(parts) for action in part]
