"""Convert commands of older data to the spelling that today's engines understand."""

from __future__ import annotations

import re

_PUT = "put "
_INTO = re.compile(r" (?:in/on|into|onto|in|on) (?=\S)")
# A second "connect" is excluded so that matching takes linear time on a text that repeats it.
_TERMINAL = re.compile(r"connect (?P<thing>(?:(?!wire|connect ).)+?) terminal 1 to ", re.IGNORECASE)
_RENAMED = {"green house": "greenhouse", "cachew": "cashew", "sandwhich": "sandwich"}
"""Spellings in AgentGym's ScienceWorld data; the last two are typos (from Early Experience's notes on replaying)."""


def modern_command(command: str) -> str:
    """Return `put mug 1 in/on desk 1` as `move mug 1 to desk 1` (renamed in ALFWorld 0.4); other texts as they are."""
    command = command.strip()
    into = _INTO.search(command, len(_PUT) + 1) if command.startswith(_PUT) else None
    return f"move {command[len(_PUT) : into.start()]} to {command[into.end() :]}" if into else command


def modern_scienceworld_action(action: str) -> str:
    """Convert an action of AgentGym's ScienceWorld data to the engine's wording: only wires have terminals now."""
    for old, new in _RENAMED.items():
        action = action.replace(old, new)
    return _TERMINAL.sub(r"connect \g<thing> to ", action)
