"""Parses ALFWorld's six kinds of task sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass

_THING = r"(?P<thing>[a-z]+)"
_TARGET = r"(?P<target>[a-z]+)"
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"put (?:two|(?:a|some)(?: (?P<state>clean|hot|cool))?) {_THING} (?:in|on) {_TARGET}",
        rf"(?P<state>clean|heat|cool) some {_THING} and put it in {_TARGET}",
        rf"find two {_THING} and put them in {_TARGET}",
    )
)
_LOOK = re.compile(
    rf"(?:look at {_THING} under the|examine the {_THING.replace('thing', 'object')} with the) {_TARGET}"
)
_VERBS = {"clean": "clean", "hot": "heat", "heat": "heat", "cool": "cool"}


@dataclass(frozen=True, slots=True)
class TaskGoal:
    """`count` things of kind `thing`, treated by `verb` (if any), in a receptacle of kind `target`; or, with `look`,
    looked at under a lamp of that kind.
    """

    thing: str
    target: str
    verb: str | None = None
    count: int = 1
    look: bool = False


def parse_sentence(sentence: str) -> TaskGoal | None:
    """Parse a sentence such as `put a clean mug in desk`; None if it follows none of ALFWorld's templates."""
    text = sentence.strip().removesuffix(".").lower()
    if match := _LOOK.fullmatch(text):
        return TaskGoal(match["thing"] or match["object"], match["target"], look=True)
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            state = match.groupdict().get("state")
            return TaskGoal(
                match["thing"], match["target"], _VERBS[state] if state else None, 2 if " two " in text else 1
            )
    return None
