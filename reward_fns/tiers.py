"""The three reward tiers and the dictionary that carries them.

The tiers and their default values (`acc` 1.0, `adm` 0.1, `fmt` -0.5) come from third-party notes on the paper (arXiv
2603.08706) and may not be the paper's. All can be changed (`reward_kwargs`).

Every reward function returns the same numeric keys for every row, because parts of verl stack the values of a batch by
the keys of its first row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from verl_act.envs import registry
from verl_act.errors import DataError

KEYS = ("score", "acc", "adm", "fmt", "thought")
"""`score` is the reward; `acc`, `adm` and `fmt` are 1.0 if that tier applied (`fmt`: the reply was malformed);
`thought` is 1.0 if the reply reasons before its answer (`parse.has_thought`), whatever it earns."""


def accurate(reward: float, thought: bool = False) -> dict[str, float]:
    """The expert's action (R_acc)."""
    return {"score": reward, "acc": 1.0, "adm": 0.0, "fmt": 0.0, "thought": float(thought)}


def admissible(reward: float, thought: bool = False) -> dict[str, float]:
    """Another action that the environment would accept (R_adm)."""
    return {"score": reward, "acc": 0.0, "adm": 1.0, "fmt": 0.0, "thought": float(thought)}


def malformed(reward: float, thought: bool = False) -> dict[str, float]:
    """A reply without a readable answer (R_fmt)."""
    return {"score": reward, "acc": 0.0, "adm": 0.0, "fmt": 1.0, "thought": float(thought)}


def neither(thought: bool = False) -> dict[str, float]:
    """A readable answer that is not an admissible action."""
    return {"score": 0.0, "acc": 0.0, "adm": 0.0, "fmt": 0.0, "thought": float(thought)}


def full_reply(solution_str: str, extra_info: Mapping[str, Any] | None) -> str:
    """The reply, preceded by the part that the prompt already wrote (`extra_info["reply_prefix"]`, if any)."""
    prefix: str = (extra_info or {}).get("reply_prefix", "")
    return prefix + solution_str


def is_admissible(action: str, extra_info: Mapping[str, Any] | None, data_source: str) -> bool:
    """Whether `action` is admissible: in `extra_info["admissible_actions"]`, or accepted in every state.

    `data_source` names the environment, `act/<env>/...`. Raises `DataError` where the list is missing.
    """
    env = data_source.removeprefix("act/").partition("/")[0]
    return registry.is_admissible(env, action, as_list(extra_info, "admissible_actions", data_source))


def as_list(extra_info: Mapping[str, Any] | None, key: str, data_source: str) -> list[str]:
    """`extra_info[key]`, a list, a tuple or a numpy array, as a list. Raises `DataError` if it is missing."""
    values: Iterable[str] | None = (extra_info or {}).get(key)
    if values is None:
        raise DataError(f"a row of {data_source!r} has no extra_info[{key!r}]; load its file with ActDataset.")
    return [str(text) for text in values]
