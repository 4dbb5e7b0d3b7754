"""The expert that searches: it acts on what the transcript shows, so that its actions can be judged from the
transcript.

ALFWorld's own walkthroughs come from a planner that knows where everything is: "go to drawer 7" as a first step is
a label nobody could have guessed. This expert looks where the object may plausibly be until it has seen it, and
then goes straight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from verl_act.envs.alfworld.beliefs import Beliefs, kind
from verl_act.envs.alfworld.task_sentence import Wanted, parse_sentence
from verl_act.envs.base import Environment, Task
from verl_act.errors import EnvError
from verl_act.schema import Context

_TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
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
        wanted = parse_sentence(context.goal)
        if wanted is None:
            raise EnvError(
                f"The search expert cannot read the task {context.goal!r}: it follows none of ALFWorld's templates. "
                "Use the expert 'planner'."
            )
        beliefs = Beliefs.from_context(context)
        return _Decision(wanted, beliefs, context.admissible_actions).decide()


@dataclass(frozen=True, slots=True)
class _Decision:
    """One decision: what is wanted, what is known, what can be done. Every method gives an action and its
    inferability.
    """

    wanted: Wanted
    beliefs: Beliefs
    admissible: tuple[str, ...]

    def decide(self) -> tuple[str, bool]:
        held, wanted = self.beliefs.held, self.wanted
        if held is not None and kind(held) != wanted.thing:
            return self._put_away(held)
        if wanted.look:
            return self._fetch(set()) if held is None else self._switch_lamp()
        destination = self._destination()
        if held is None:
            return self._fetch({name for name in self.beliefs.contents.get(destination or "", ()) if self._ready(name)})
        if self._ready(held):
            return self._at(destination, f"move {held} to {destination}")
        tool = next((r for r in self.beliefs.receptacles if kind(r) == _TOOLS.get(wanted.verb or "")), None)
        return self._at(tool, f"{wanted.verb} {held} with {tool}")

    def _fetch(self, finished: set[str]) -> tuple[str, bool]:
        for name, receptacle in self.beliefs.known(self.wanted.thing):
            if name not in finished:
                return self._at(receptacle, f"take {name} from {receptacle}")
        return self._search(self.wanted.thing)

    def _switch_lamp(self) -> tuple[str, bool]:
        for lamp, receptacle in self.beliefs.known(self.wanted.target):
            return self._at(receptacle, f"use {lamp}")
        return self._search(self.wanted.target)

    def _search(self, thing: str) -> tuple[str, bool]:
        unseen = self.beliefs.unseen()
        if not unseen:
            return "look", False
        here = self.beliefs.place
        target = (
            here if here in unseen else min(unseen, key=lambda r: _effort(thing, kind(r)))
        )  # first listed of the best
        for command in (f"open {target}", f"go to {target}"):
            if command in self.admissible:
                return command, target == here or len(unseen) == 1
        return f"examine {target}", len(unseen) == 1

    def _at(self, receptacle: str | None, command: str) -> tuple[str, bool]:
        """Do `command` at `receptacle`, which may have to be opened and gone to before."""
        if command in self.admissible:
            return command, True
        for step in (f"open {receptacle}", f"go to {receptacle}"):
            if step in self.admissible:
                return step, True
        return "look", False

    def _put_away(self, held: str) -> tuple[str, bool]:
        """Get rid of a thing that is not wanted: here if possible, else at the first place that takes such things."""
        ways = [command for command in self.admissible if command.startswith(f"move {held} to ")]
        ways += [f"open {self.beliefs.place}"]
        ways += [f"go to {r}" for r in self.beliefs.receptacles if kind(r) in _homes(kind(held))]
        return next(((command, True) for command in ways if command in self.admissible), ("look", False))

    def _destination(self) -> str | None:
        """The fullest destination seen (two things belong into one), then where the agent stands, then the first
        listed.
        """

        def rank(receptacle: str) -> tuple[int, bool]:
            ready = sum(self._ready(name) for name in self.beliefs.contents.get(receptacle, ()))
            return -ready, receptacle != self.beliefs.place

        return min((r for r in self.beliefs.receptacles if kind(r) == self.wanted.target), key=rank, default=None)

    def _ready(self, name: str) -> bool:
        verb = self.wanted.verb
        return kind(name) == self.wanted.thing and (verb is None or verb in self.beliefs.treated.get(name, ()))


def _effort(thing: str, receptacle: str) -> tuple[bool, bool]:
    """Sorts receptacle kinds for a search: where such things are kept first, and what need not be opened before the
    rest.
    """
    return receptacle not in _homes(thing), receptacle in _openable()


@cache
def _homes(thing: str) -> frozenset[str]:
    """The kinds of receptacle that `thing` may be kept in, by ALFWorld's own table."""
    from alfworld.gen.constants import VAL_RECEPTACLE_OBJECTS

    if thing.endswith("lamp"):
        return frozenset(_LAMP_STANDS)
    return frozenset(
        receptacle.lower()
        for receptacle, things in VAL_RECEPTACLE_OBJECTS.items()
        if thing in {t.lower() for t in things}
    )


@cache
def _openable() -> frozenset[str]:
    from alfworld.gen.constants import OPENABLE_CLASS_LIST

    return frozenset(name.lower() for name in OPENABLE_CLASS_LIST)
