"""Commands as older ALFWorld data spells them, brought to the spelling that the engine understands today."""

from __future__ import annotations

import re

_PUT = re.compile(
    r"(?P<lead>\s*)put (?P<thing>.+?) (?:in/on|into|onto|in|on) (?P<receptacle>\S.*?)(?P<tail>\s*)", re.DOTALL
)


def modern_command(command: str) -> str:
    """`put mug 1 in/on desk 1` as `move mug 1 to desk 1` (ALFWorld 0.4 renamed it); any other text as it is."""
    found = _PUT.fullmatch(command)
    if found is None:
        return command
    return f"{found['lead']}move {found['thing']} to {found['receptacle']}{found['tail']}"
