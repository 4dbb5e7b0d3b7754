"""The search expert: acts on the transcript alone, so its actions can be judged from the transcript.

ALFWorld's own walkthroughs come from a planner that knows where everything is: "go to drawer 7" as a first step is a
label that no agent can infer. This expert searches plausible receptacles until it has seen the object, and then takes
the direct way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from verl_act.envs.alfworld.beliefs import Beliefs, kind
from verl_act.envs.alfworld.goal import Goal, parse_sentence
from verl_act.envs.alfworld.package import constants
from verl_act.envs.base import Environment, Task
from verl_act.envs.ties import TieBreaker
from verl_act.errors import EnvError
from verl_act.schema import Context

_TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_OPENABLE = frozenset(name.lower() for name in constants.OPENABLE_CLASS_LIST)
_LAMP_STANDS = ("desk", "sidetable", "dresser", "shelf", "diningtable", "coffeetable", "tvstand", "countertop")


class SearchExpert:
    """Wins almost every game with no more knowledge than the agent.

    Its rules: fetch a seen object, use the tool and go to the destination, preferring where the agent is; while
    searching, look into where the agent is, then into the usual homes of the object before other receptacles, and of
    those into the ones that need no opening. An action is *inferable* if these rules determine it. Where they rank
    several actions equal, such as going to one of four unseen shelves, one is sampled by task and seed: no model can
    learn which.
    """

    _ties = TieBreaker()

    def reset(self, task: Task, seed: int) -> None:
        self._ties = TieBreaker.of(task, seed)

    def act(self, context: Context, environment: Environment | None = None) -> tuple[str, bool]:
        """The next action and whether it is inferable; `environment` is not used.

        Raises `EnvError` if the task sentence follows none of ALFWorld's templates.
        """
        decision = decide(context, ties=self._ties)
        return decision.action, decision.inferable

    def ties(self, context: Context) -> tuple[str, ...]:
        """As `TyingExpert.ties`; raises `EnvError` like `act`."""
        return decide(context, ties=self._ties).ties


class Decision(NamedTuple):
    """The next action, its subgoal (`take mug 1 from shelf 2`, `find mug`), whether the action is inferable, and the
    actions that it was sampled from, if it was.
    """

    action: str
    subgoal: str
    inferable: bool
    ties: tuple[str, ...]


def decide(
    context: Context, goal: str | None = None, *, ties: TieBreaker | None = None, taken: str | None = None
) -> Decision:
    """The expert's decision in this state; for another task in the same room if `goal` is given.

    Between actions that rank equal, `taken` is preferred; else `ties` decides. Raises `EnvError` if the task sentence
    follows none of ALFWorld's templates.
    """
    goal = context.goal if goal is None else goal
    task_goal = parse_sentence(goal)
    if task_goal is None:
        raise EnvError(
            f"The search expert cannot read the task {goal!r}: it follows none of ALFWorld's templates. "
            "Use the expert 'planner'."
        )
    state = _SearchState(task_goal, Beliefs.from_context(context), context.admissible_actions)
    subgoals: dict[str, str] = {}
    for action, subgoal in state.options():
        subgoals.setdefault(action, subgoal)
    if not subgoals:
        return Decision("look", "look", False, ())
    action = taken if taken in subgoals else (ties or TieBreaker()).sample(tuple(subgoals), len(context.history))
    tied = tuple(subgoals) if len(subgoals) > 1 else ()
    return Decision(action, subgoals[action], not tied, tied)


_Option = tuple[str, str]
"""An action and its subgoal."""


@dataclass(frozen=True, slots=True)
class _SearchState:
    """The goal, the beliefs and the admissible actions of one state."""

    goal: Goal
    beliefs: Beliefs
    admissible: tuple[str, ...]

    def options(self) -> Iterator[_Option]:
        """The actions that rank first; none if no action serves the goal."""
        held, goal = self.beliefs.held, self.goal
        if held is not None and kind(held) != goal.thing:
            yield from self._put_away(held)
        elif held is None:
            yield from self._fetch(goal.thing, "take {0} from {1}", set() if goal.look else self._finished())
        elif goal.look:
            yield from self._fetch(goal.target, "use {0}", set())
        elif self._ready(held):
            for receptacle in self._destinations():
                yield from self._at(receptacle, f"move {held} to {receptacle}", f"put {held} in/on {receptacle}")
        else:
            tools = [r for r in self.beliefs.receptacles if kind(r) == _TOOLS.get(goal.verb or "")]
            for tool in self._here_first(tools):
                yield from self._at(tool, f"{goal.verb} {held} with {tool}")

    def _fetch(self, thing: str, command: str, finished: set[str]) -> Iterator[_Option]:
        """Do `command` with a known object of this kind, or search for one."""
        known = [(name, r) for name, r in self.beliefs.known(thing) if name not in finished]
        nearest = self._here_first([r for _, r in known])
        for name, receptacle in known:
            if receptacle in nearest:
                yield from self._at(receptacle, command.format(name, receptacle))
        if not known:
            yield from self._search(thing)

    def _search(self, thing: str) -> Iterator[_Option]:
        unseen = self._here_first(self.beliefs.unseen())
        least = min((_effort(thing, kind(r)) for r in unseen), default=None)
        for receptacle in unseen:
            if _effort(thing, kind(receptacle)) == least:
                commands = (f"open {receptacle}", f"go to {receptacle}")
                action = next((command for command in commands if command in self.admissible), f"examine {receptacle}")
                yield action, f"find {thing}"

    def _at(self, receptacle: str, *commands: str) -> Iterator[_Option]:
        """Do one of `commands` at `receptacle`, after going there and opening it if necessary."""
        ways = (*commands, f"open {receptacle}", f"go to {receptacle}")
        for action in [command for command in ways if command in self.admissible][:1]:
            yield action, commands[0]

    def _put_away(self, held: str) -> Iterator[_Option]:
        """Put down an object that the goal does not need: here if possible, else in a suitable receptacle."""
        here = (f"move {held} to ", f"put {held} in/on ")
        homes = [f"go to {r}" for r in self.beliefs.receptacles if kind(r) in _homes(kind(held))]
        for ways in (
            [command for command in self.admissible if command.startswith(here)],
            [f"open {self.beliefs.position}"],
            homes,
        ):
            if possible := [command for command in ways if command in self.admissible]:
                yield from ((command, f"put away {held}") for command in possible)
                return

    def _here_first(self, receptacles: Sequence[str]) -> Sequence[str]:
        """The receptacle that the agent is at, if it is among these; else all of them."""
        here = self.beliefs.position
        return [here] if here is not None and here in receptacles else receptacles

    def _destinations(self) -> Sequence[str]:
        """The destinations with the most finished objects; of these, the one that the agent is at."""
        finished = self._finished_in()
        most = max(map(len, finished.values()), default=0)
        return self._here_first([r for r, names in finished.items() if len(names) == most])

    def _finished(self) -> set[str]:
        """The objects that stay where they are: those in the destination that has the most finished ones."""
        fullest = sorted(self._finished_in().values(), key=len, reverse=True)[:2]
        tied = len(fullest) == 2 and len(fullest[0]) == len(fullest[1])
        return set() if tied or not fullest else set(fullest[0])

    def _finished_in(self) -> dict[str, list[str]]:
        """Destination -> its finished objects."""
        contents, target = self.beliefs.contents, self.goal.target
        destinations = [r for r in self.beliefs.receptacles if kind(r) == target]
        return {r: [name for name in contents.get(r, ()) if self._ready(name)] for r in destinations}

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
