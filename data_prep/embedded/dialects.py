"""The dialects of the embedded models: how prompts show an environment's states, and which tokens its texts need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from verl_act.errors import ConfigError

_COMPACT = ("\nsee : ", "\ndo : ", "\nact :", "\npick : ", " | ", "assistant")
"""What the template `compact` adds to an environment's texts.

The spaces belong to these tokens, so that an action begins with the same token everywhere and can be copied.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """`template_options` are those of the template `compact`; a recipe with the embedded model must use the same.

    `phrases` become single tokens, and so do the matches of `names` that occur in enough prompts. `lower_case`: text
    is converted to lower case before tokenization, for environments that ignore case and mix it.
    """

    phrases: tuple[str, ...]
    names: re.Pattern[str]
    lower_case: bool = False
    template_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"history_length": 8}))


_NO_LISTS = MappingProxyType(
    {
        "history_length": 8,
        "admissible_in_action": False,
        "admissible_in_choice": False,
        "observations_in_history": False,
    }
)
"""For long states: leave out earlier observations and the hundreds of admissible actions."""

DIALECTS = {
    "alfworld": Dialect(
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
    ),
    "scienceworld": Dialect(
        names=re.compile(r" [a-z]{3,}"),
        template_options=_NO_LISTS,
        phrases=(
            *_COMPACT,
            "\nsee : This room is called the",
            "\nsee : This outside location is called the",
            "\nsee : You move to the",
            "\nsee : You focus on the",
            "\nsee : You move the",
            "\nsee : The door is now open.",
            ". In it, you see: \n\tthe agent\n\ta substance called air",
            ". Here you see: \n\tthe agent\n\ta substance called air",
            "\nYou also see:\n\tA door to the",
            "\n\tA door to the",
            "\n\ta substance called",
            "\n\ta",
            "\n\tan",
            "\n\tthe",
            " (that is open)",
            " (that is closed)",
            " (containing nothing)",
            " (containing a substance called soil)",
            " (containing",
            ". On the",
            " is: ",
            "in the",
            "nothing.",
            "open door to",
            "go to",
            "focus on",
            "pick up",
            "look around",
            "move",
            "find a(n)",
            " find a(n)",
            "The door is already open.",
            " to the inventory.",
            " First, focus on the thing. Then, move it to the",
            "The animals are in the 'outside' location.  Focus on the animal with the",
            ".",
        ),
    ),
    "webshop": Dialect(
        # " desk", "pink" as in "click[pink]" and " [sep] pink" (the spaces belong to " [sep] "), and "k7qx", a piece of
        # the embedded catalogue's product ids.
        names=re.compile(r"(?<!\]) [a-z]{3,}|(?<=\[)[a-z]{3,}|(?<=\[sep\] )[a-z]{3,}|[b-z][2-9][b-z]{2}"),
        lower_case=True,
        template_options=_NO_LISTS,
        phrases=(
            *_COMPACT,
            "\nsee : webshop [sep] search",
            "\nsee : back to search [sep] < prev [sep] ",
            "\nsee : back to search [sep] page 1 (total results: 50) [sep] next > [sep] b0",
            "\nsee : back to search [sep] page",
            " [sep] < prev [sep] ",
            " [sep] next > [sep] b0",
            " [sep] rating: n.a. [sep] description [sep] features [sep] reviews [sep] buy now",
            " [sep] price: $",
            " [sep] color [sep] ",
            " [sep] size [sep] ",
            " [sep] style [sep] ",
            " [sep] flavor name [sep] ",
            " [sep] scent [sep] ",
            " [sep] fit type [sep] ",
            " [sep] material type [sep] ",
            " [sep] $",
            " [sep] b0",
            " [sep] ",
            ", and price lower than",
            "0.00 dollars",
            "click[back to search]",
            "click[< prev]",
            "click[next >]",
            "click[description]",
            "click[features]",
            "click[reviews]",
            "click[buy now]",
            "click[b0",
            "click[",
            "search[",
            "]",
            ".",
            ",",
        ),
    ),
}


def dialect_of(env: str) -> Dialect:
    """Return the dialect of an environment. Raises `ConfigError` if it has none."""
    if env not in DIALECTS:
        raise ConfigError(
            f"no embedded model can be made for {env!r}: add its dialect to data_prep/embedded/dialects.py, which has "
            f"those of {', '.join(DIALECTS)}."
        )
    return DIALECTS[env]
