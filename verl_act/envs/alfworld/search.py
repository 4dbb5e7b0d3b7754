"""The search expert: acts on the transcript alone, so its actions can be judged from the transcript.

ALFWorld's own walkthroughs come from a planner that knows where everything is: "go to drawer 7" as a first step is a
label that no agent can infer. This expert searches plausible receptacles until it has seen the object, and then takes
the direct way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from verl_act.envs.alfworld.beliefs import Beliefs, kind
from verl_act.envs.alfworld.package import constants
from verl_act.envs.alfworld.task_sentence import TaskGoal, parse_sentence
from verl_act.envs.base import Environment, Task
from verl_act.errors import EnvError
from verl_act.schema import Context

_TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_OPENABLE = frozenset(name.lower() for name in constants.OPENABLE_CLASS_LIST)
_LAMP_STANDS = ("desk", "sidetable", "dresser", "shelf", "diningtable", "coffeetable", "tvstand", "countertop")


class SearchExpert:
    """Wins almost every game with no more knowledge than the agent.

    An action is *inferable* if the context determines it: a manipulation; going to where the target object has been
    seen, to the tool or to the destination (the first listed, if several qualify); opening the closed receptacle that
    the agent is at while searching; going to the only unseen receptacle. Choosing one of several unseen receptacles is
    a guess, so it is not inferable.
    """

    def reset(self, task: Task) -> None:
        """Nothing to prepare: everything is in the context."""

    def act(self, context: Context, environment: Environment | None = None) -> tuple[str, bool]:
        """The next action and whether it is inferable; `environment` is not used.

        Raises `EnvError` if the task sentence follows none of ALFWorld's templates.
        """
        decision = decide(context)
        return decision.action, decision.inferable


class Decision(NamedTuple):
    """The next action, whether it is inferable, and its subgoal: `take mug 1 from shelf 2`, `find mug`."""

    action: str
    inferable: bool
    subgoal: str


def decide(context: Context, goal: str | None = None) -> Decision:
    """The expert's decision in this state; for another task in the same room if `goal` is given.

    Raises `EnvError` if the task sentence follows none of ALFWorld's templates.
    """
    goal = context.goal if goal is None else goal
    task_goal = parse_sentence(goal)
    if task_goal is None:
        raise EnvError(
            f"The search expert cannot read the task {goal!r}: it follows none of ALFWorld's templates. "
            "Use the expert 'planner'."
        )
    return _SearchState(task_goal, Beliefs.from_context(context), context.admissible_actions).decide()


@dataclass(frozen=True, slots=True)
class _SearchState:
    """The goal, the beliefs and the admissible actions of one state."""

    goal: TaskGoal
    beliefs: Beliefs
    admissible: tuple[str, ...]

    def decide(self) -> Decision:
        held, goal = self.beliefs.held, self.goal
        if held is not None and kind(held) != goal.thing:
            return self._put_away(held)
        if goal.look:
            return self._fetch(set()) if held is None else self._switch_lamp()
        destination = self._destination()
        if held is None:
            return self._fetch({name for name in self.beliefs.contents.get(destination or "", ()) if self._ready(name)})
        if self._ready(held):
            return self._at(destination, f"move {held} to {destination}", f"put {held} in/on {destination}")
        tool = next((r for r in self.beliefs.receptacles if kind(r) == _TOOLS.get(goal.verb or "")), None)
        return self._at(tool, f"{goal.verb} {held} with {tool}")

    def _fetch(self, finished: set[str]) -> Decision:
        for name, receptacle in self.beliefs.known(self.goal.thing):
            if name not in finished:
                return self._at(receptacle, f"take {name} from {receptacle}")
        return self._search(self.goal.thing)

    def _switch_lamp(self) -> Decision:
        for lamp, receptacle in self.beliefs.known(self.goal.target):
            return self._at(receptacle, f"use {lamp}")
        return self._search(self.goal.target)

    def _search(self, thing: str) -> Decision:
        unseen, subgoal = self.beliefs.unseen(), f"find {thing}"
        if not unseen:
            return Decision("look", False, subgoal)
        here = self.beliefs.position
        first_of_best = min(unseen, key=lambda r: _effort(thing, kind(r)))
        target = here if here in unseen else first_of_best
        for command in (f"open {target}", f"go to {target}"):
            if command in self.admissible:
                return Decision(command, target == here or len(unseen) == 1, subgoal)
        return Decision(f"examine {target}", len(unseen) == 1, subgoal)

    def _at(self, receptacle: str | None, *commands: str) -> Decision:
        """Do one of `commands` at `receptacle`, after going there and opening it if necessary."""
        for command in (*commands, f"open {receptacle}", f"go to {receptacle}"):
            if command in self.admissible:
                return Decision(command, True, commands[0])
        return Decision("look", False, commands[0])

    def _put_away(self, held: str) -> Decision:
        """Put down an object that the goal does not need: here if possible, else in the first suitable receptacle."""
        here = (f"move {held} to ", f"put {held} in/on ")
        ways = [command for command in self.admissible if command.startswith(here)]
        ways += [f"open {self.beliefs.position}"]
        ways += [f"go to {r}" for r in self.beliefs.receptacles if kind(r) in _homes(kind(held))]
        action = next((command for command in ways if command in self.admissible), None)
        return Decision(action or "look", action is not None, f"put away {held}")

    def _destination(self) -> str | None:
        """The destination with the most finished objects, or else the agent's position, or else the first listed."""

        def rank(receptacle: str) -> tuple[int, bool]:
            ready = sum(self._ready(name) for name in self.beliefs.contents.get(receptacle, ()))
            return -ready, receptacle != self.beliefs.position

        return min((r for r in self.beliefs.receptacles if kind(r) == self.goal.target), key=rank, default=None)

    def _ready(self, name: str) -> bool:
        verb = self.goal.verb
        return kind(name) == self.goal.thing and (verb is None or verb in self.beliefs.treated.get(name, ()))


def _effort(thing: str, receptacle: str) -> tuple[bool, bool]:
    """Sort key of receptacle kinds for a search: usual homes first, and of those the ones that need no opening."""
    return receptacle not in _homes(thing), receptacle in _OPENABLE


@cache
def _homes(thing: str) -> frozenset[str]:
    """The kinds of receptacle that `thing` may be kept in, by ALFWorld's own table."""
    if thing.endswith("lamp"):
        return frozenset(_LAMP_STANDS)
    table = constants.VAL_RECEPTACLE_OBJECTS.items()
    return frozenset(receptacle.lower() for receptacle, things in table if thing in map(str.lower, things))
