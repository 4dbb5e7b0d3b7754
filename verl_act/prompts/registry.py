"""Templates by name.

Other packages add templates by entry points of the group `verl_act.templates`, named like the template and pointing at
its class (`my_package.prompts:MyTemplate`); every process then finds them. `register_template` registers one in the
calling process only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl_act.entry_points import entry_point_names, load_entry_point
from verl_act.errors import ConfigError
from verl_act.prompts.chat import ChatTemplate
from verl_act.prompts.compact import CompactTemplate
from verl_act.prompts.template import Template

ENTRY_POINT_GROUP = "verl_act.templates"

_templates: dict[str, Callable[..., Template]] = {}


def register_template(name: str, make: Callable[..., Template]) -> None:
    """Let `get_template(name, **options)` return `make(**options)`. Raises `ConfigError` if `name` is taken."""
    if _templates.get(name, make) is not make:
        raise ConfigError(f"template {name!r} is registered already; choose another name.")
    _templates[name] = make


def template_names() -> list[str]:
    """The names that `get_template` understands, sorted."""
    return sorted({*_templates, *entry_point_names(ENTRY_POINT_GROUP)})


def get_template(name: str, **options: Any) -> Template:
    """The template `name` with its options set. Raises `ConfigError` on an unknown name, option or value."""
    make = _templates.get(name) or load_entry_point(ENTRY_POINT_GROUP, name)
    if make is None:
        raise ConfigError(
            f"no template is called {name!r}; there are {', '.join(template_names())}. One of your own needs an entry "
            f"point of group {ENTRY_POINT_GROUP!r} in its package."
        )
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(f"template {name!r} does not take these options: {error}.") from error


def _plain(**options: Any) -> Template:
    return ChatTemplate(reasoning=False, **options)


register_template("cot", ChatTemplate)
register_template("plain", _plain)
register_template("compact", CompactTemplate)
