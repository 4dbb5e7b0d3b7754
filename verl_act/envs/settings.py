"""Validates a command's environment settings before any work starts."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from verl_act.envs.base import EnvSpec
from verl_act.envs.registry import get_env
from verl_act.errors import ActError, ConfigError, EnvError, OptionError
from verl_act.manifest import FILE_NAME
from verl_act.options import check_options


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


def input_folders(env_settings: Mapping[str, Any]) -> list[Path]:
    """The folders in an environment's settings that a command has written, such as generated games."""
    paths = [str(value) for value in env_settings.values() if isinstance(value, str | os.PathLike)]
    return [Path(path) for path in paths if (Path(path) / FILE_NAME).is_file()]
