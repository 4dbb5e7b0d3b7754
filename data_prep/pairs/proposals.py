"""Propose alternatives to the expert's action: parsed from sampled replies, or sampled from the admissible actions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from verl_act.envs.registry import is_admissible
from verl_act.parse import match_action, normalise, parse_action, verb
from verl_act.schema import Alternatives, Step

POLICY, ADMISSIBLE = "policy", "admissible"


@dataclass(frozen=True, slots=True)
class Proposal:
    """An alternative action that has not been tried yet. `source` is `POLICY` or `ADMISSIBLE`."""

    action: str
    source: str


def from_policy(step: Step, sampled: Alternatives | None, counts: Counter[str]) -> list[Proposal]:
    """The distinct actions in the replies that differ from the expert's, in sampling order.

    An action that matches an admissible action after normalisation becomes that action. Dropped replies are counted.
    """
    if sampled is None:
        counts["states_without_replies"] += 1
        return []
    actions: dict[str, str] = {}
    expert = normalise(step.action)
    for reply in sampled.replies:
        counts["replies"] += 1
        parsed = parse_action(reply)
        if parsed.action is None:
            counts[f"replies_malformed_{parsed.malformed}"] += 1
            continue
        key = normalise(parsed.action)
        if key == expert:
            counts["replies_equal_to_expert"] += 1
        elif key in actions:
            counts["replies_duplicate"] += 1
        else:
            actions[key] = match_action(parsed.action, step.context.admissible_actions) or parsed.action
    return [Proposal(action, POLICY) for action in actions.values()]


def from_admissible(step: Step, seed: int, tried: Iterable[Proposal] = ()) -> Iterator[Proposal]:
    """The admissible actions other than the expert's and those in `tried`, in random order.

    The order depends only on `seed` and the state.
    """
    known = {normalise(step.action), *(normalise(proposal.action) for proposal in tried)}
    others = sorted(action for action in step.context.admissible_actions if normalise(action) not in known)
    random.Random(f"{seed}:{step.state_id}").shuffle(others)
    return (Proposal(action, ADMISSIBLE) for action in others)


def matched_first(step: Step, proposals: Iterable[Proposal]) -> list[Proposal]:
    """`proposals` with those first that the environment takes, that have the expert's verb, and as many words."""
    listed, length = step.context.admissible_actions, len(step.action.split())

    def unlike(proposal: Proposal) -> tuple[bool, bool, bool]:
        action = proposal.action
        other_verb, other_length = verb(action) != verb(step.action), len(action.split()) != length
        return not is_admissible(step.env, action, listed), other_verb, other_length

    return sorted(proposals, key=unlike)
