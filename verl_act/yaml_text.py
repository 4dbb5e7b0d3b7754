"""YAML as OmegaConf reads it, for recipes and for the command line alike.

Unlike with PyYAML's own loader, `1e-5` is a number, a date is text, and a key may not occur twice.
"""

from __future__ import annotations

from io import StringIO
from typing import Any

from verl_act.errors import ConfigError


def parse_mapping(source: str, text: str) -> dict[str, Any]:
    """Parse a YAML mapping; interpolations are kept as text. Raises `ConfigError` naming `source`."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.load(StringIO(text))
        plain = OmegaConf.to_container(config, resolve=False)
    except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{source}: is not valid YAML for a recipe: {' '.join(str(error).split())}") from error
    except (OSError, TypeError, AttributeError) as error:  # raised by OmegaConf where the file is a single value
        raise ConfigError(f"{source}: is not a mapping of recipe keys.") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: is nested too deeply.") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{source}: is not a mapping of recipe keys.")
    return plain  # type: ignore[return-value]


def parse_value(source: str, text: str) -> Any:
    """Parse the value in `KEY=VALUE`. Raises `ConfigError` naming `source`."""
    return parse_mapping(source, f"value: {text}" if "\n" not in text else f"value:\n  {text}").get("value")
