"""Validates a command's environment settings before any work starts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from verl_act.envs.base import EnvSpec
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, ConfigError, EnvError, OptionError
from verl_act.options import Above0, NotNegative, Positive, check_options


def check_env(env: str, env_settings: Mapping[str, Any], splits: Iterable[str] = (), option: str = "split") -> EnvSpec:
    """The spec of `env`. Raises `ConfigError` for an unknown environment, or for settings or splits it does not have.

    Makes an environment to check the settings, which is cheap: data are read at the first reset.
    """
    spec = get_env(env)
    make = inspect.unwrap(spec.make)
    check_options(vars(make).get("__init__", make) if isinstance(make, type) else make, env_settings, "env_settings")
    spec.check_settings(env_settings)
    try:
        spec.make(**env_settings).close()
    except ConfigError as error:
        raise OptionError("env_settings", f"cannot work: {error}") from error
    except ActError:
        raise
    except Exception as error:  # raised by a third-party class
        raise EnvError(f"{env} cannot be made with {dict(env_settings)}: {type(error).__name__}: {error}") from error
    requested = list(splits)
    for split in requested:
        if split not in spec.splits:
            raise OptionError(option, f"is {split!r}; the splits of {spec.name} are {', '.join(spec.splits)}.")
        if requested.count(split) > 1:
            raise OptionError(option, f"has {split!r} twice; give each split once.")
    return spec


def check_pool(
    *,
    actors: Positive = 1,
    step_timeout: Above0 = 60.0,
    reset_timeout: Above0 = 120.0,
    max_memory_mb: Above0 = 8192.0,
    num_cpus: NotNegative = 0.0,
) -> None:
    """Raise `OptionError` for invalid settings of an environment pool. Time-outs are in seconds."""
    check_options(check_pool, {"actors": actors})
    limits = {
        "step_timeout": step_timeout,
        "reset_timeout": reset_timeout,
        "max_memory_mb": max_memory_mb,
        "num_cpus": num_cpus,
    }
    check_options(check_pool, limits, "pool")
