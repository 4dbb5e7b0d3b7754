"""A part of a long list of admissible actions, for prompts: the environment's own list is always complete."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from verl_act.parse import match_action


def shortened(actions: Sequence[str], most: int, also: Sequence[str] = ()) -> tuple[str, ...]:
    """At most `most` of `actions`, in their order, and those of `also` that are among them.

    The kinds of action (the first words) take turns, so that rare kinds are complete; of a kind with more entries than
    turns, some are drawn. The draw depends on `actions` alone: a state always shows the same ones, whatever the expert
    does there.
    """
    if len(actions) <= most:
        return tuple(actions)
    kinds: dict[str, list[str]] = defaultdict(list)
    for action in actions:
        kinds[action.partition(" ")[0]].append(action)
    draw = random.Random("\n".join(actions).encode(errors="surrogatepass"))
    chosen = {action for kind, turns in _turns(kinds, most).items() for action in draw.sample(kinds[kind], turns)}
    chosen.update(match for action in also if (match := match_action(action, actions)) is not None)
    return tuple(action for action in actions if action in chosen)


def _turns(kinds: dict[str, list[str]], most: int) -> dict[str, int]:
    """How many entries of each kind are shown."""
    turns = dict.fromkeys(kinds, 0)
    left = most
    while left:
        for kind in [kind for kind in kinds if turns[kind] < len(kinds[kind])][:left]:
            turns[kind] += 1
            left -= 1
    return turns
