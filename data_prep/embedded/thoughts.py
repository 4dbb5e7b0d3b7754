"""Thoughts for an embedded model that reasons: the subgoal behind an action.

The searching expert writes them, not a language model. A wrong thought is the right one for another task in the same
room, and leads to an action that is wrong too. A model trained on both states a subgoal and acts on it; RL then teaches
which subgoal fits the task.
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
"""Maps a state and a goal to the thought for that goal; None if no admissible action follows."""


def thinker_of(env: str) -> Thinker:
    """Return the thinker of an environment. Raises `ConfigError` if it has none."""
    if env != "alfworld":
        raise ConfigError(
            f"thoughts are not available for {env!r}, only for 'alfworld' (data_prep/embedded/thoughts.py)."
        )
    from verl_act.envs.alfworld.search import decide

    def think(context: Context, goal: str) -> Thought | None:
        try:
            decision = decide(context, goal)
        except EnvError:  # unknown type of task
            return None
        return Thought(decision.subgoal, decision.action) if decision.action in context.admissible_actions else None

    return think


def wrong_thought(think: Thinker, context: Context, goals: Sequence[str], right: str) -> Thought | None:
    """Return the first thought, over `goals`, whose action differs from the action `right`; None if there is none."""
    thoughts = (think(context, goal) for goal in goals)
    return next((thought for thought in thoughts if thought is not None and thought.action != right), None)
