"""WebShop for the embedded model: the phrases of its pages."""

from __future__ import annotations

import re

from verl_act.envs.dialect import COMPACT_PHRASES, NO_LISTS, Dialect

DIALECT = Dialect(
    # " desk", "pink" as in "click[pink]" and " [sep] pink" (the spaces belong to " [sep] "), and "k7qx", a piece of
    # the embedded catalogue's product ids.
    names=re.compile(r"(?<!\]) [a-z]{3,}|(?<=\[)[a-z]{3,}|(?<=\[sep\] )[a-z]{3,}|[b-z][2-9][b-z]{2}"),
    lower_case=True,
    template_options=NO_LISTS,
    phrases=(
        *COMPACT_PHRASES,
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
)
