"""Format settings as command-line arguments: options of this package, and Hydra overrides."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BEFORE_QUOTE = re.compile(r'(\\+)("|$)')


def act_command(name: str, out: Path | None, options: Mapping[str, Any]) -> list[str]:
    """`python -m verl_act NAME` with its options. A list repeats its option; true becomes a flag."""
    words = [sys.executable, "-m", "verl_act", name]
    if out is not None:
        words += ["--out", str(out)]
    for key, value in options.items():
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, list):
            words += [word for item in value for word in (option, str(item))]
        elif isinstance(value, dict):
            words += [option, json.dumps(value)]
        elif value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words


def flat(overrides: dict[str, Any], prefix: str = "") -> dict[str, Any]:
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
