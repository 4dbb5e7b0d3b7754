"""Environments and prompt templates that other packages add by entry points."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from verl_act.errors import ConfigError


def entry_point_names(group: str) -> set[str]:
    """The names that installed packages register in `group`."""
    return {point.name for point in entry_points(group=group)}


def load_entry_point(group: str, name: str) -> Any | None:
    """Load the entry point `name` of `group`; None if no package has it.

    Raises `ConfigError` if it cannot be loaded.
    """
    for point in entry_points(group=group, name=name):
        try:
            return point.load()
        except Exception as error:
            package = f"of package {point.dist.name!r} " if point.dist else ""
            raise ConfigError(
                f"Entry point {name!r} ({point.value!r}, group {group}) {package}cannot be loaded: "
                f"{type(error).__name__}: {error}. Fix that package, or uninstall it."
            ) from error
    return None
