"""Generate games of an environment that has a maker for them (`EnvSpec.make_games`)."""

from __future__ import annotations

import os

from verl_act.envs.base import EnvSpec
from verl_act.envs.registry import get_env, installed_env, known_envs
from verl_act.errors import OptionError
from verl_act.manifest import Manifest
from verl_act.settings.data import GamesSettings


def make_games(settings: GamesSettings, out: str | os.PathLike[str]) -> Manifest:
    """Let the environment write its games and a manifest to `out`. Raises `ConfigError` for an invalid setting."""
    make = check_settings(settings).make_games
    assert make is not None
    return make(settings, out)


def check_settings(settings: GamesSettings) -> EnvSpec:
    """Return the environment. Raises `ConfigError` if it generates no games, or for the counts."""
    spec, counts = get_env(settings.env), settings.counts
    if spec.make_games is None:
        makers = [name for name in known_envs() if (known := installed_env(name)) and known.make_games]
        raise OptionError("env", f"is {spec.name!r}, which generates no games; those that do: {', '.join(makers)}.")
    if set(counts) - set(spec.splits) or not any(counts.values()):
        raise OptionError(
            "counts", f"is {counts}; give the number of games for at least one of {', '.join(spec.splits)}."
        )
    return spec
