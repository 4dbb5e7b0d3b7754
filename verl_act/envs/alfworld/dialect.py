"""ALFWorld for the embedded models: the engine's phrases, and the search expert's subgoals as thoughts."""

from __future__ import annotations

import re

from verl_act.envs.alfworld.search import decide
from verl_act.envs.dialect import Dialect, Thought
from verl_act.errors import EnvError
from verl_act.schema import Context


def think(context: Context, goal: str, action: str | None) -> Thought | None:
    """The subgoal and the action of the search expert, which sees only `context`."""
    try:
        decision = decide(context, goal, taken=action)
    except EnvError:  # unknown type of task
        return None
    return Thought(decision.subgoal, decision.action) if decision.action in context.admissible_actions else None


DIALECT = Dialect(
    think=think,
    names=re.compile(r" [a-z]+ \d+"),  # " drawer 2"
    phrases=(
        "\nsee : You are in the middle of a room. Looking quickly around you, you see a",
        "\nsee : You arrive at",
        "\nsee : You open the",
        "\nsee : You pick up the",
        "\nsee : You",
        "\nsee :",
        "\ndo :",
        "\ncan :",
        "\nact :",
        "\npick :",
        ". On the",
        ". The",
        ", you see a",
        ", you see nothing",
        " is open. In it, you see a",
        " is open. In it, you see nothing",
        " is closed",
        " from the",
        " to the",
        " using the",
        ", and a",
        ", a",
        " go to",
        "go to",
        "assistant",
        " inventory | look",
        " |",
        ".",
    ),
)
