"""Extract the action and the thought of a model's turn, in the notations of published data sets.

Every function takes linear time in the length of a turn.
"""

from __future__ import annotations

import re

_OPEN_THOUGHT, _CLOSE_THOUGHT = "<think>", "</think>"
_OPEN_ACTION, _CLOSE_ACTION = "<action>", "</action>"
# `Action:`, `ACTION: `, `Act 2:`, `**Action:**`; in any case at the start of a line, elsewhere only capitalized.
_LABEL = re.compile(r"^[ \t>*_#-]*(?:action|act)(?:[ \t]+\d+)?[*_ \t]*:[*_]*", re.MULTILINE | re.IGNORECASE)
_LABEL_WITHIN = re.compile(r"(?:\*\*)?\b(?:Action|ACTION|Act|ACT)(?: \d+)?\**:\**")
_THOUGHT_LABEL = re.compile(r"(?:\A\s*(?i:thought|think)|\b(?:Thought|THOUGHT|Think|THINK))(?: \d+)?\**:\**")
_LINE = re.compile(r"\s*(\S[^\n]*)")
_FENCE = "```"
_CLOSING = {'"': '"', "'": "'", "`": "`", "*": "*", "_": "_", "“": "”", "‘": "’"}
_LAYERS = 4
"""How many layers of quotes and the like are removed around an action."""


def decision(turn: str) -> tuple[str, str | None] | None:
    """Return the action and the thought of a turn; None if it holds no action.

    Actions quoted in a thought do not count: only the text after a tagged thought is searched, and the last of several
    labelled lines wins.
    """
    thought, start = _tagged_thought(turn)
    if action := _tagged_action(turn, start):
        return action, thought
    for label in (_LABEL, _LABEL_WITHIN):
        for match in reversed(list(label.finditer(turn, start))):
            if action := _labelled_action(turn, match.end()):
                return action, thought or _labelled_thought(turn, start, match.start())
    return None


def undecorated(action: str) -> str:
    """Return an action without the quotes, backticks, emphasis and full stop around it."""
    for _ in range(_LAYERS):
        action = action.strip().rstrip(".").rstrip()
        if len(action) > 2 and _CLOSING.get(action[0]) == action[-1]:
            action = action[1:-1]
    return action.strip()


def _tagged_thought(turn: str) -> tuple[str | None, int]:
    """Return the thought up to the first closing tag (a prompt may have opened it), and the offset after that tag."""
    end = turn.find(_CLOSE_THOUGHT)
    if end < 0:
        return None, 0
    start = turn.find(_OPEN_THOUGHT, 0, end)
    thought = turn[start + len(_OPEN_THOUGHT) if start >= 0 else 0 : end].strip()
    return thought, end + len(_CLOSE_THOUGHT)


def _tagged_action(turn: str, start: int) -> str | None:
    """Return the first non-empty tagged action; of nested tags the inner one."""
    while (end := turn.find(_CLOSE_ACTION, start)) >= 0:
        opened = turn.rfind(_OPEN_ACTION, start, end)
        if opened >= 0 and (action := turn[opened + len(_OPEN_ACTION) : end].strip()):
            return action
        start = end + len(_CLOSE_ACTION)
    return None


def _labelled_action(turn: str, start: int) -> str | None:
    """Return the rest of the label's line, or the next non-empty line."""
    match = _LINE.match(turn, start)
    if match and match[1].startswith(_FENCE):
        fenced = match[1].strip("` \t")
        if match[1].rstrip().endswith(_FENCE) and fenced:
            return fenced
        match = _LINE.match(turn, match.end())
    if match is None or _LABEL.match(turn, match.start(1)):
        return None
    return match[1].strip()


def _labelled_thought(turn: str, start: int, end: int) -> str | None:
    match = _THOUGHT_LABEL.search(turn, start, end)
    return turn[match.end() : end].strip() if match else None
