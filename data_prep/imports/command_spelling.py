"""Commands as older data spell them, brought to the spelling that the engines understand today."""

from __future__ import annotations

import re

_PUT = "put "
_INTO = re.compile(r" (?:in/on|into|onto|in|on) (?=\S)")
# A second "connect" is excluded so that a text of nothing else takes linear time.
_TERMINAL = re.compile(r"connect (?P<thing>(?:(?!wire|connect ).)+?) terminal 1 to ", re.IGNORECASE)
_RENAMED = {"green house": "greenhouse", "cachew": "cashew", "sandwhich": "sandwich"}
"""Spellings of AgentGym's ScienceWorld data, the last two slips (Early Experience's notes on replaying them)."""


def modern_command(command: str) -> str:
    """`put mug 1 in/on desk 1` as `move mug 1 to desk 1` (ALFWorld 0.4 renamed it); any other text as it is."""
    command = command.strip()
    into = _INTO.search(command, len(_PUT) + 1) if command.startswith(_PUT) else None
    return f"move {command[len(_PUT) : into.start()]} to {command[into.end() :]}" if into else command


def modern_scienceworld_action(action: str) -> str:
    """An action of AgentGym's ScienceWorld data in the words of the engine: only wires have terminals now."""
    for old, new in _RENAMED.items():
        action = action.replace(old, new)
    return _TERMINAL.sub(r"connect \g<thing> to ", action)
