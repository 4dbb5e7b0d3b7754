"""ScienceWorld for the embedded model: the engine's phrases."""

from __future__ import annotations

import re

from verl_act.envs.dialect import COMPACT_PHRASES, NO_LISTS, Dialect

DIALECT = Dialect(
    names=re.compile(r" [a-z]{3,}"),
    template_options=NO_LISTS,
    phrases=(
        *COMPACT_PHRASES,
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
)
