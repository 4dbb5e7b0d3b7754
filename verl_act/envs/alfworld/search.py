"""The expert that searches: it acts on the transcript, and so can be judged from the transcript.

ALFWorld's own walkthroughs come from a planner that knows where everything is: "go to drawer 7" as a first step is
a label nobody could have guessed. This expert looks where the object may plausibly be until it has seen it, and
then goes straight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from verl_act.envs.alfworld.beliefs import Beliefs, kind
from verl_act.envs.alfworld.package import constants
from verl_act.envs.alfworld.task_sentence import Wanted, parse_sentence
from verl_act.envs.base import Environment, Task
from verl_act.errors import EnvError
from verl_act.schema import Context

_TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_OPENABLE = frozenset(name.lower() for name in constants.OPENABLE_CLASS_LIST)
_LAMP_STANDS = ("desk", "sidetable", "dresser", "shelf", "diningtable", "coffeetable", "tvstand", "countertop")


class SearchExpert:
    """Wins almost every game without knowing more than the agent.

    An action is *inferable* when the context decides it: a manipulation; going to a place where the wanted object
    has been seen, to the tool or to the destination (where several would do equally, the first listed is meant);
    opening the closed receptacle it stands at while searching; the only place left unseen. Choosing one of several
    unseen places is not inferable: it is a guess, if a sensible one.
    """

    def reset(self, task: Task) -> None:
        """Nothing to prepare: everything is in the context."""

    def act(self, context: Context, environment: Environment | None = None) -> tuple[str, bool]:
        """The next action and whether it is inferable; `environment` is not asked.

        Raises `EnvError` where the task sentence follows none of ALFWorld's templates.
        """
        decision = decide(context)
        return decision.action, decision.inferable


class Decision(NamedTuple):
    """The next action, whether it is inferable, and what it serves: `take mug 1 from shelf 2`, `find mug`."""

    action: str
    inferable: bool
    subgoal: str


def decide(context: Context, goal: str | None = None) -> Decision:
    """What the expert does at this state; for another task in the same room if `goal` is given.

    Raises `EnvError` where the task sentence follows none of ALFWorld's templates.
    """
    goal = context.goal if goal is None else goal
    wanted = parse_sentence(goal)
    if wanted is None:
        raise EnvError(
            f"The search expert cannot read the task {goal!r}: it follows none of ALFWorld's templates. "
            "Use the expert 'planner'."
        )
    return _State(wanted, Beliefs.from_context(context), context.admissible_actions).decide()


@dataclass(frozen=True, slots=True)
class _State:
    """What is wanted, known and possible at one state."""

    wanted: Wanted
    beliefs: Beliefs
    admissible: tuple[str, ...]

    def decide(self) -> Decision:
        held, wanted = self.beliefs.held, self.wanted
        if held is not None and kind(held) != wanted.thing:
            return self._put_away(held)
        if wanted.look:
            return self._fetch(set()) if held is None else self._switch_lamp()
        destination = self._destination()
        if held is None:
            return self._fetch({name for name in self.beliefs.contents.get(destination or "", ()) if self._ready(name)})
        if self._ready(held):
            return self._at(destination, f"move {held} to {destination}", f"put {held} in/on {destination}")
        tool = next((r for r in self.beliefs.receptacles if kind(r) == _TOOLS.get(wanted.verb or "")), None)
        return self._at(tool, f"{wanted.verb} {held} with {tool}")

    def _fetch(self, finished: set[str]) -> Decision:
        for name, receptacle in self.beliefs.known(self.wanted.thing):
            if name not in finished:
                return self._at(receptacle, f"take {name} from {receptacle}")
        return self._search(self.wanted.thing)

    def _switch_lamp(self) -> Decision:
        for lamp, receptacle in self.beliefs.known(self.wanted.target):
            return self._at(receptacle, f"use {lamp}")
        return self._search(self.wanted.target)

    def _search(self, thing: str) -> Decision:
        unseen, subgoal = self.beliefs.unseen(), f"find {thing}"
        if not unseen:
            return Decision("look", False, subgoal)
        here = self.beliefs.place
        first_of_best = min(unseen, key=lambda r: _effort(thing, kind(r)))
        target = here if here in unseen else first_of_best
        for command in (f"open {target}", f"go to {target}"):
            if command in self.admissible:
                return Decision(command, target == here or len(unseen) == 1, subgoal)
        return Decision(f"examine {target}", len(unseen) == 1, subgoal)

    def _at(self, receptacle: str | None, *commands: str) -> Decision:
        """Do one of `commands` at `receptacle`, which may have to be opened and gone to before."""
        for command in (*commands, f"open {receptacle}", f"go to {receptacle}"):
            if command in self.admissible:
                return Decision(command, True, commands[0])
        return Decision("look", False, commands[0])

    def _put_away(self, held: str) -> Decision:
        """Get rid of a thing that is not wanted: here if possible, else at the first place that takes such things."""
        here = (f"move {held} to ", f"put {held} in/on ")
        ways = [command for command in self.admissible if command.startswith(here)]
        ways += [f"open {self.beliefs.place}"]
        ways += [f"go to {r}" for r in self.beliefs.receptacles if kind(r) in _homes(kind(held))]
        action = next((command for command in ways if command in self.admissible), None)
        return Decision(action or "look", action is not None, f"put away {held}")

    def _destination(self) -> str | None:
        """The fullest destination (two things belong into one), or where the agent stands, or the first listed."""

        def rank(receptacle: str) -> tuple[int, bool]:
            ready = sum(self._ready(name) for name in self.beliefs.contents.get(receptacle, ()))
            return -ready, receptacle != self.beliefs.place

        return min((r for r in self.beliefs.receptacles if kind(r) == self.wanted.target), key=rank, default=None)

    def _ready(self, name: str) -> bool:
        verb = self.wanted.verb
        return kind(name) == self.wanted.thing and (verb is None or verb in self.beliefs.treated.get(name, ()))


def _effort(thing: str, receptacle: str) -> tuple[bool, bool]:
    """Sorts kinds for a search: where such things are kept come first, and of those what needs no opening."""
    return receptacle not in _homes(thing), receptacle in _OPENABLE


@cache
def _homes(thing: str) -> frozenset[str]:
    """The kinds of receptacle that `thing` may be kept in, by ALFWorld's own table."""
    if thing.endswith("lamp"):
        return frozenset(_LAMP_STANDS)
    table = constants.VAL_RECEPTACLE_OBJECTS.items()
    return frozenset(receptacle.lower() for receptacle, things in table if thing in map(str.lower, things))
