"""Thoughts for an embedded model that reasons: before an action, the subgoal that it serves.

No language model writes them, an expert does: the one that searches says what it is after. A wrong thought is the right
one for another task in the same room, and the action that follows from it is as wrong. So a model that has learned
both states a subgoal and acts on it, and whether the subgoal is the task's is left for RL to teach.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from verl_act.errors import ConfigError, EnvError
from verl_act.schema import Context


class Thought(NamedTuple):
    """A subgoal, and the action that follows from it."""

    text: str
    action: str


Thinker = Callable[[Context, str], Thought | None]
"""(state, task) -> what to think where the task is this one; None where nothing admissible follows."""


def thinker_of(env: str) -> Thinker:
    """Raises `ConfigError` where nobody has written one for the environment."""
    if env != "alfworld":
        raise ConfigError(
            f"thoughts: there are none for {env!r}, only for 'alfworld' (data_prep/embedded/thoughts.py)."
        )
    from verl_act.envs.alfworld.search import decide

    def think(context: Context, goal: str) -> Thought | None:
        try:
            decision = decide(context, goal)
        except EnvError:  # a task sentence of no known kind
            return None
        return Thought(decision.subgoal, decision.action) if decision.action in context.admissible_actions else None

    return think


def wrong_thought(think: Thinker, context: Context, goals: Sequence[str], right: str) -> Thought | None:
    """The first thought that one of the tasks `goals` leads to and `right`, an action, does not follow from."""
    thoughts = (think(context, goal) for goal in goals)
    return next((thought for thought in thoughts if thought is not None and thought.action != right), None)
