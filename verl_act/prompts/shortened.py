"""Shortens long lists of admissible actions for prompts; the environment's own list stays complete."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from verl_act.parse import match_action


def shortened(actions: Sequence[str], most: int, also: Sequence[str] = ()) -> tuple[str, ...]:
    """At most `most` of `actions`, in their order, and in addition those of `also` that are among them.

    The kinds of action (by first word) take turns, so that rare kinds are complete; of the others, a sample is listed.
    It depends only on `actions`: a state always lists the same ones, whatever the expert does.
    """
    if len(actions) <= most:
        return tuple(actions)
    kinds: dict[str, list[str]] = defaultdict(list)
    for action in actions:
        kinds[action.partition(" ")[0]].append(action)
    generator = random.Random("\n".join(actions).encode(errors="surrogatepass"))
    chosen = {action for kind, turns in _turns(kinds, most).items() for action in generator.sample(kinds[kind], turns)}
    chosen.update(match for action in also if (match := match_action(action, actions)) is not None)
    return tuple(action for action in actions if action in chosen)


def _turns(kinds: dict[str, list[str]], most: int) -> dict[str, int]:
    """The number of listed entries of each kind."""
    turns = dict.fromkeys(kinds, 0)
    left = most
    while left:
        for kind in [kind for kind in kinds if turns[kind] < len(kinds[kind])][:left]:
            turns[kind] += 1
            left -= 1
    return turns
