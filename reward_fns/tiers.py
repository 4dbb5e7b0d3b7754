"""The three reward tiers and the dictionary that carries them.

The tiers and their default values (`ACC`, `ADM`, `FMT`) come from third-party notes on the paper (arXiv
2603.08706) and may not be the paper's. All can be changed (`reward_kwargs`).

Every reward function returns the same numeric keys for every row, because parts of verl stack the values of a batch by
the keys of its first row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from verl_act.envs import registry
from verl_act.errors import DataError

Tier = Literal["acc", "adm", "fmt"]
ACC, ADM, FMT = 1.0, 0.1, -0.5
KEYS = ("score", "acc", "adm", "fmt", "thought")
"""`score` is the reward; `acc`, `adm` and `fmt` are 1.0 if that tier applied (`fmt`: the reply was malformed);
`thought` is 1.0 if the reply reasons before its answer (`parse.has_thought`), whatever it earns."""


def score(tier: Tier | None, reward: float = 0.0, thought: bool = False) -> dict[str, float]:
    """The values of a reply. `acc`: it gave the expert's action (R_acc); `adm`: another action that the environment
    would accept (R_adm); `fmt`: no readable answer (R_fmt); None: a readable one that is not an admissible action.
    """
    reached = {name: float(name == tier) for name in ("acc", "adm", "fmt")}
    return {"score": reward, **reached, "thought": float(thought)}


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
