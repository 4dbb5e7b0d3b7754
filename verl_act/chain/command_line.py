"""Settings as words of a command line: ours, and Hydra's overrides."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BEFORE_QUOTE = re.compile(r'(\\+)("|$)')


def act_command(name: str, out: Path | None, options: Mapping[str, Any]) -> list[str]:
    """`python -m verl_act NAME` with its options; a list gives its option several times, true stands by itself."""
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
    """Nested override keys as dotted ones."""
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def hydra_value(value: Any) -> str:
    """A value in Hydra's override grammar: keys of a mapping stand without quotes, and a backslash is itself, except
    before a quote.
    """
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{hydra_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if isinstance(value, str):
        return '"' + _BEFORE_QUOTE.sub(r"\1\1\2", value).replace('"', '\\"') + '"'
    return json.dumps(value)
