"""The list of admissible actions that a prompt shows; the environment's own list stays as it is."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import replace

from verl_act.parse import match_action, verb
from verl_act.schema import Context


def shortened(actions: Sequence[str], most: int, candidates: Sequence[str] = ()) -> tuple[str, ...]:
    """`most` of `actions`, in their order; all of them if there are no more.

    The kinds of action (by first word) take turns, so that rare kinds are complete; of the others, a random sample is
    listed. It depends only on the arguments: a state always lists the same actions, whatever the expert does.

    A choice lists all of its `candidates`, or none of them if `actions` lacks one. Alternatives often come from a
    policy that has seen the list without candidates, and the expert's action does not, so the list must not reveal
    which of them that list had: its length and its counts by kind are the same, and the other entries are sampled
    anew. Where no candidate is listed, each costs its kind one entry, admissible or not.
    """
    if len(actions) <= most:
        return tuple(actions)
    kinds: dict[str, list[str]] = {}
    for action in actions:
        kinds.setdefault(verb(action), []).append(action)
    matches = {candidate: match_action(candidate, actions) for candidate in candidates}
    named = {match for match in matches.values() if match is not None}
    generator = random.Random("\n".join((*actions, *sorted(named))).encode(errors="surrogatepass"))
    if len(kinds) > most:
        kinds = {kind: kinds[kind] for kind in generator.sample(sorted(kinds), len(kinds))}
    unlisted = sorted(candidate for candidate, match in matches.items() if match is None)
    required = set[str]() if unlisted else named
    others = {kind: [action for action in entries if action not in named] for kind, entries in kinds.items()}
    for pool in (others.get(verb(candidate)) for candidate in unlisted):
        if pool:
            pool.remove(generator.choice(pool))
    fixed = {kind: sum(action in required for action in entries) for kind, entries in kinds.items()}
    sampled = set(required)
    for kind, turns in _turns(fixed, others, most - len(required)).items():
        sampled.update(generator.sample(others[kind], turns))
    return tuple(action for action in actions if action in sampled)


def _turns(fixed: Mapping[str, int], others: Mapping[str, Sequence[str]], left: int) -> dict[str, int]:
    """The number of `others` of each kind to list, `left` in total: kinds with the fewest listed entries first."""
    turns = dict.fromkeys(others, 0)
    level = 0
    while left > 0 and any(turns[kind] < len(entries) for kind, entries in others.items()):
        level += 1
        for kind, entries in others.items():
            if left > 0 and fixed[kind] + turns[kind] < level and turns[kind] < len(entries):
                turns[kind] += 1
                left -= 1
    return turns


def choice_context(context: Context, candidates: Sequence[str], admissible: Sequence[bool]) -> Context:
    """`context` for a choice: its list of actions includes every candidate that is admissible.

    Some environments accept more than they list: WebShop lists one search of all, which is often the expert's. Added
    candidates are listed where nothing reveals that they were added, and the order does not depend on that of
    `candidates`. An empty list means that it is unknown, and stays empty.
    """
    listed = list(context.admissible_actions)
    accepted = (candidate for candidate, flag in zip(candidates, admissible, strict=True) if flag)
    added = sorted(candidate for candidate in accepted if match_action(candidate, listed) is None)
    if not listed or not added:
        return context
    in_order = len(listed) > 1 and listed == sorted(listed)
    generator = random.Random("\n".join(sorted((*listed, *added))).encode(errors="surrogatepass"))
    for candidate in added:
        alike = [index for index, action in enumerate(listed) if verb(action) == verb(candidate)]
        anywhere = generator.randint(alike[0], alike[-1] + 1) if alike else generator.randint(0, len(listed))
        listed.insert(bisect(listed, candidate) if in_order else anywhere, candidate)
    return replace(context, admissible_actions=tuple(listed))
