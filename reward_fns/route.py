"""The reward entry of every recipe: each row goes to the function its `data_source` names.

    reward.custom_reward_function.path=pkg://verl_act.reward_fns.route
    reward.custom_reward_function.name=compute_score

`act/<env>/choice`, `act/<env>/action` and `act/<env>/episode` are ours. Held-out rows add `/<split>`, and
`/not_inferable` if the label does not follow from the prompt. Every other source goes to verl's
`default_compute_score` or to your own reward function, so that batches can mix our rows with any others:

    +reward.custom_reward_function.reward_kwargs.other={path:my_reward.py,name:compute_score}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from verl_act.errors import ConfigError, DataError
from verl_act.parse import has_thought
from verl_act.reward_fns import action, choice, tiers


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    acc: float = tiers.ACC,
    adm: float = tiers.ADM,
    fmt: float = tiers.FMT,
    other: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Score one reply; returns the keys of `tiers.KEYS`, and for an episode its metrics too.

    `acc`, `adm`, `fmt` and `other` are set by `reward.custom_reward_function.reward_kwargs`. `other` is the `path` and
    `name` of the reward function for all rows that are not ours, as in verl's own configuration. It, or verl's default,
    receives the further `options` (verl does not pass its sandbox settings to a custom function: add them to
    `reward_kwargs` too). Raises `ConfigError` on an `act/` source of unknown kind, and on an `other` that cannot be
    called.
    """
    if not data_source.startswith("act/"):
        function = _other(**other) if other else _verl()
        result = function(
            data_source=data_source,
            solution_str=solution_str,
            ground_truth=ground_truth,
            extra_info=extra_info,
            **options,
        )
        return _as_ours(result, has_thought(solution_str))
    kind = next(iter(data_source.split("/")[2:]), "")
    if kind == "episode":
        return _episode(data_source, extra_info)
    if reward := {"choice": choice.compute_score, "action": action.compute_score}.get(kind):
        return reward(data_source, solution_str, ground_truth, extra_info, acc=acc, adm=adm, fmt=fmt)
    raise ConfigError(f"data_source {data_source!r} is unknown; ours are act/<env>/choice, action or episode.")


def _episode(data_source: str, extra_info: Mapping[str, Any] | None) -> dict[str, float]:
    """The score of a whole episode, which the agent loop `act_env` stores in `extra_info`.

    It includes the episode's metrics (`success`, `steps`, ...), since verl logs what a reward function returns.
    """
    outcome = extra_info or {}
    if "episode_reward" not in outcome or "episode" not in outcome:
        raise DataError(
            f"a row of {data_source!r} has no episode outcome (extra_info['episode_reward'] and ['episode']); "
            "its agent_name must be act_env."
        )
    metrics = {name: float(value) for name, value in outcome["episode"].items()}
    score, thought = float(outcome["episode_reward"]), metrics.get("thought_share", 0.0)
    return {**metrics, **tiers.score(None, score), "acc": metrics["success"], "thought": thought}


def _verl() -> Callable[..., Any]:
    from verl.utils.reward_score import default_compute_score

    return default_compute_score


@lru_cache(maxsize=4)
def _other(path: str = "", name: str = "compute_score") -> Callable[..., Any]:
    from verl.utils.import_utils import load_extern_object

    where = f"reward.custom_reward_function.reward_kwargs.other is {name!r} of {path!r}"
    try:
        function = load_extern_object(module_path=path, object_name=name)
    except (OSError, AttributeError, ImportError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"{where}, which cannot be loaded: {error}.") from error
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ConfigError(f"{where}; it must be an ordinary function (not async) with verl's signature.")
    return function


def _as_ours(result: Any, thought: bool) -> dict[str, float]:
    """Convert the result of another reward function to our keys."""
    # Drop further keys, some of them strings (`pred`): the other rows of the batch do not have them.
    known = result if isinstance(result, Mapping) else {"score": result}
    score = float(known["score"])
    return {**tiers.score(None, score, thought), "acc": float(known.get("acc", score))}
