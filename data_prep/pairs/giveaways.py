"""Shortcuts that reveal the label: the length of an action, its verb, or a word that names the label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from verl_act.parse import verb
from verl_act.prompts import Template
from verl_act.schema import Context, Pair

LABEL_WORDS = ("expert", "experts", "alternative", "alternatives", "correct", "incorrect", "gold", "oracle", "policy")
_WORD = re.compile(r"[a-z]+")


def accuracy(pairs: Sequence[Pair], value: Callable[[str], float]) -> float:
    """How often the expert's action has a higher `value` than an alternative; a tie counts as half."""
    gains = [value(pair.expert_action) - value(other) for pair in pairs for other in pair.alternatives]
    return sum(1.0 if gain > 0 else 0.5 if gain == 0 else 0.0 for gain in gains) / len(gains)


def best_verb(pairs: Sequence[Pair]) -> tuple[str, float]:
    """The verb whose actions are best always preferred, or always avoided, and the accuracy of that rule."""
    lead: Counter[str] = Counter()
    compared = [(pair.expert_action, other) for pair in pairs for other in pair.alternatives]
    for expert, other in compared:
        lead[verb(expert)] += 1
        lead[verb(other)] -= 1
    name = max(sorted(lead), key=lambda name: abs(lead[name]))
    return name, 0.5 + abs(lead[name]) / (2 * len(compared))


def matched(pair: Pair) -> bool:
    """Whether all actions of a pair are listed as admissible, and have the same verb and number of words."""
    actions = (pair.expert_action, *pair.alternatives)
    alike = len({(verb(action), len(action.split())) for action in actions}) == 1
    return alike and set(pair.context.admissible_actions).issuperset(actions)


def label_word(pair: Pair, template: Template) -> str | None:
    """A word that names the label: one in the template, or one in some but not all actions and not in the state."""
    introduced = _template_words(template) & set(LABEL_WORDS)
    if introduced:
        return min(introduced)
    spoken: list[set[str]] = [set(_words(action)) for action in (pair.expert_action, *pair.alternatives)]
    # A word in every candidate reveals nothing.
    named = (spoken[0].union(*spoken) - spoken[0].intersection(*spoken)) & set(LABEL_WORDS)
    if not named:
        return None
    context = pair.context
    texts = (
        context.goal,
        context.observation,
        *context.admissible_actions,
        *(turn.observation for turn in context.history),
    )
    return min(named - {word for text in texts for word in _words(text)}, default=None)


@lru_cache(maxsize=8)
def _template_words(template: Template) -> frozenset[str]:
    """The words of a choice prompt that come from the template."""
    empty = Context(goal="", history=(), observation="", admissible_actions=())
    return frozenset(
        word for message in template.choice_messages(empty, ["", ""]) for word in _words(message["content"])
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
