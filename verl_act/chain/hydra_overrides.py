"""Values and keys in Hydra's grammar of overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BEFORE_QUOTE = re.compile(r'(\\+)("|$)')


def flat(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested override keys as dotted keys."""
    dotted: dict[str, Any] = {}
    for key, value in overrides.items():
        dotted |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return dotted


def hydra_value(value: Any) -> str:
    """A value in Hydra's override grammar, where keys have no quotes and a backslash escapes only a quote."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{hydra_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if isinstance(value, str):
        return '"' + _BEFORE_QUOTE.sub(r"\1\1\2", value).replace('"', '\\"') + '"'
    return json.dumps(value)
