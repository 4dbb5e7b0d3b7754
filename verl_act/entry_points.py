"""What other packages add by entry points: environments and prompt templates."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from verl_act.errors import ConfigError


def entry_point_names(group: str) -> set[str]:
    """The names that installed packages give in `group`."""
    return {point.name for point in entry_points(group=group)}


def load_entry_point(group: str, name: str) -> Any | None:
    """What `name` of `group` points at, None where no package has it.

    Raises `ConfigError` where it cannot be loaded.
    """
    for point in entry_points(group=group, name=name):
        try:
            return point.load()
        except Exception as error:
            package = f"of package {point.dist.name!r} " if point.dist else ""
            raise ConfigError(
                f"Entry point {name!r} ({point.value!r}, group {group}) {package}cannot be loaded: "
                f"{type(error).__name__}: {error}. Mend that package, or uninstall it."
            ) from error
    return None
