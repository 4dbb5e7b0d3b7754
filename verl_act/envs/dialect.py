"""The dialect of an environment's embedded model: what it reads, which tokens its texts need, and what it thinks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from verl_act.schema import Context

COMPACT_PHRASES = ("\nsee : ", "\ndo : ", "\nact :", "\npick : ", " | ", "assistant")
"""What the template `compact` adds to an environment's texts.

The spaces belong to these tokens, so that an action begins with the same token everywhere and can be copied.
"""

NO_LISTS = MappingProxyType(
    {
        "history_length": 8,
        "admissible_in_action": False,
        "admissible_in_choice": False,
        "observations_in_history": False,
    }
)
"""Template options for long states: leave out earlier observations and the hundreds of admissible actions."""


class Thought(NamedTuple):
    """What a small policy thinks before it acts."""

    text: str
    """The subgoal."""
    action: str
    """The action that follows from it."""


Thinker = Callable[[Context, str, str | None], Thought | None]
"""Maps a state, a goal and perhaps an action to the thought for that goal, which leads to the action if it is one of
several that serve the goal alike; None if no admissible action follows.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How `verl-act dev embedded-model` reads an environment.

    The matches of `names` that occur in enough prompts become single tokens, and so do `phrases`. `lower_case`: text is
    converted to lower case before tokenization, for environments that ignore case and mix it. `template_options` are
    those of the template `compact`; a recipe with the embedded model must use the same.

    `think` gives the thoughts of a model that reasons: the subgoal behind an action, without a language model. A wrong
    thought is the right one for another task, and leads to an action that is wrong too. A model trained on both states
    a subgoal and acts on it; RL then teaches which subgoal fits the task.
    """

    names: re.Pattern[str]
    phrases: tuple[str, ...] = COMPACT_PHRASES
    lower_case: bool = False
    template_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"history_length": 8}))
    think: Thinker | None = None
