"""Template names and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl_act.errors import ConfigError
from verl_act.prompts.chat import ChatTemplate
from verl_act.prompts.compact import CompactTemplate
from verl_act.prompts.template import Template

_templates: dict[str, Callable[..., Template]] = {}


def register_template(name: str, make: Callable[..., Template]) -> None:
    """Let `get_template(name, **options)` return `make(**options)`. Raises `ConfigError` where `name` is taken."""
    if _templates.get(name, make) is not make:
        raise ConfigError(f"template {name!r} is registered already; choose another name.")
    _templates[name] = make


def template_names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_templates)


def get_template(name: str, **options: Any) -> Template:
    """The template `name` with its options set. Raises `ConfigError` on an unknown name, option or value."""
    if name not in _templates:
        raise ConfigError(f"no template is called {name!r}; there are {', '.join(template_names())}.")
    try:
        return _templates[name](**options)
    except TypeError as error:
        raise ConfigError(f"template {name!r} does not take these options: {error}.") from error


def _plain(**options: Any) -> Template:
    return ChatTemplate(reasoning=False, **options)


register_template("cot", ChatTemplate)
register_template("plain", _plain)
register_template("compact", CompactTemplate)
