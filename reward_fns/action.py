"""The single-step action stage's reward: did the reply give the expert's action? (Paper section 3.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_act.parse import has_thought, normalise, parse_action
from verl_act.reward_fns import tiers


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    acc: float = tiers.ACC,
    adm: float = tiers.ADM,
    fmt: float = tiers.FMT,
) -> dict[str, float]:
    """Score a reply to an action prompt; signature as verl calls it (`reward.custom_reward_function`).

    `ground_truth` is the expert's action; `extra_info` needs `admissible_actions`. The tiers and the returned keys are
    those of `choice.compute_score`. The action must be written as the environment accepts it: quotes or a final full
    stop make it another action. Raises `DataError` if `extra_info` lacks the field.
    """
    reply = tiers.full_reply(solution_str, extra_info)
    action, thought = parse_action(reply).action, has_thought(reply)
    if action is None:
        return tiers.score("fmt", fmt, thought)
    if normalise(action) == normalise(ground_truth):
        return tiers.score("acc", acc, thought)
    if tiers.is_admissible(action, extra_info, data_source):
        return tiers.score("adm", adm, thought)
    return tiers.score(None, thought=thought)
