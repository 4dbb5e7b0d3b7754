"""Environments by name. Importing this module imports no engine: a built-in is loaded on first use.

Another package adds its environment with an entry point of group `verl_act.envs` that has the environment's name and
points to an `EnvSpec` (`my_package.my_env:SPEC`). A script may call `register_env` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module

from verl_act.entry_points import entry_point_names, load_entry_point
from verl_act.envs.base import EnvSpec
from verl_act.errors import ConfigError
from verl_act.extras import needs_extra
from verl_act.parse import match_action
from verl_act.prompts import Message, Template
from verl_act.prompts.shortened import choice_context
from verl_act.schema import Pair

ENTRY_POINT_GROUP = "verl_act.envs"

_BUILT_IN = {
    "alfworld": "verl_act.envs.alfworld",
    "scienceworld": "verl_act.envs.scienceworld",
    "webshop": "verl_act.envs.webshop",
}
"""Name -> module holding `SPEC`."""

REGISTERED: dict[str, EnvSpec] = {}


def register_env(spec: EnvSpec) -> EnvSpec:
    """Register `spec` under its name in this process. Raises `ConfigError` if another spec has that name."""
    installed_env.cache_clear()
    known = REGISTERED.setdefault(spec.name, spec)
    if known is not spec and known != spec:
        raise ConfigError(
            f"An environment named {spec.name!r} is registered already ({known.make}). Choose another name."
        )
    return known


def known_envs() -> list[str]:
    """The names that `get_env` accepts, sorted."""
    return sorted({*_BUILT_IN, *REGISTERED, *entry_point_names(ENTRY_POINT_GROUP)})


def get_env(name: str) -> EnvSpec:
    """The spec of environment `name`. Raises `ConfigError` if it is unknown or its package is not installed."""
    if name in REGISTERED:
        return REGISTERED[name]
    if name in _BUILT_IN:
        with needs_extra(name):
            return register_env(import_module(_BUILT_IN[name]).SPEC)
    spec = load_entry_point(ENTRY_POINT_GROUP, name)
    if spec is None:
        raise ConfigError(f"There is no environment named {name!r}. Known: {', '.join(known_envs())}.")
    if not isinstance(spec, EnvSpec) or spec.name != name:
        raise ConfigError(
            f"Entry point {name!r} of group {ENTRY_POINT_GROUP} must be an EnvSpec of that name, not {spec!r}."
        )
    return register_env(spec)


@cache
def installed_env(name: str) -> EnvSpec | None:
    """As `get_env`, but None if it is not available: training on pairs does not need their environment."""
    try:
        return get_env(name)
    except ConfigError:
        return None


def is_admissible(env: str, action: str, listed: Sequence[str]) -> bool:
    """Whether `action` is admissible in a state that lists these actions, as far as is known without an episode.

    If the environment is not installed, the list alone decides.
    """
    if match_action(action, listed) is not None:
        return True
    spec = installed_env(env)
    return spec is not None and spec.always_admissible is not None and spec.always_admissible(action)


def admissible_candidates(
    env: str, candidates: Sequence[str], listed: Sequence[str], judged: Mapping[str, bool | None]
) -> list[bool]:
    """Whether each of `candidates` is admissible: the flag in `judged` (action -> flag, from the pair file), or else
    `is_admissible` on the list.
    """
    return [
        is_admissible(env, action, listed) if (flag := judged.get(action)) is None else bool(flag)
        for action in candidates
    ]


def choice_prompt(template: Template, pair: Pair, candidates: Sequence[str]) -> list[Message]:
    """The prompt that asks for the best of `candidates`, the actions of `pair` in any order.

    Its list of admissible actions includes every candidate that is admissible (see `choice_context`).
    """
    flags = admissible_candidates(pair.env, candidates, pair.context.admissible_actions, pair.judged_admissible)
    return template.choice_messages(choice_context(pair.context, candidates, flags), candidates)
