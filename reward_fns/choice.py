"""The critic stage's reward: did the reply choose the expert's action? (Paper section 3, Agentic Critical Training.)

The default values come from third-party notes on the paper; see `tiers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_act.parse import has_thought, normalise, parse_choice
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
    """Score a reply to a choice prompt; signature as verl calls it (`reward.custom_reward_function`).

    `ground_truth` is the expert's action; `extra_info` needs `candidates`, as displayed, and `admissible_actions`.
    `candidates_admissible` flags the candidates that the environment accepts; without it, the list of admissible
    actions decides. The reward is `acc` for the expert's action, `adm` for any other admissible action, a
    candidate or not, `fmt` for a malformed reply, and else 0, also for a candidate that the environment would refuse.
    Returns the keys of `tiers.KEYS`. Raises `DataError` if `extra_info` lacks a field.
    """
    candidates = tiers.as_list(extra_info, "candidates", data_source)
    reply = tiers.full_reply(solution_str, extra_info)
    choice, thought = parse_choice(reply, candidates), has_thought(reply)
    if choice.text is None:
        return tiers.score("fmt", fmt, thought)
    chosen = choice.text if choice.index is None else candidates[choice.index]
    if normalise(chosen) == normalise(ground_truth):
        return tiers.score("acc", acc, thought)
    flags = (extra_info or {}).get("candidates_admissible")
    if choice.index is None or flags is None:
        admissible = tiers.is_admissible(chosen, extra_info, data_source)
    else:
        admissible = bool(flags[choice.index])
    return tiers.score("adm", adm, thought) if admissible else tiers.score(None, thought=thought)
