"""What an agent can know from the transcript alone, parsed from the observations, never from the engine."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from verl_act.schema import Context

_NAME = r"[a-z]+ \d+"
_ARTICLE = re.compile(rf"\ba ({_NAME})")
_ROOM = re.compile(r"Looking quickly around you, you see ([^.]*)\.")
_ARRIVED = re.compile(rf"You arrive at ({_NAME})\.")
_CONTENTS = re.compile(rf"(?:On|The) (?:the )?({_NAME})(?:, you see| is open\. In it, you see) ([^.]*)\.")
_TAKEN = re.compile(rf"You pick up the ({_NAME}) from the ({_NAME})\.")
# "put": games made before ALFWorld 0.4.
_PUT = re.compile(rf"You (?:move|put) the ({_NAME}) (?:to|in/on) the ({_NAME})\.")
_TREATED = re.compile(rf"You (clean|heat|cool) the ({_NAME}) using the ({_NAME})\.")
_CARRYING = re.compile(rf"You are carrying: a ({_NAME})\.")


def kind(name: str) -> str:
    """`mug` of `mug 2`."""
    return name.rpartition(" ")[0]


@dataclass(slots=True)
class Beliefs:
    """The state of the room as observed so far."""

    receptacles: list[str] = field(default_factory=list)
    """In the order of the room's description."""
    position: str | None = None
    """The receptacle that the agent is at."""
    held: str | None = None
    contents: dict[str, list[str]] = field(default_factory=dict)
    """The observed contents of each receptacle."""
    treated: dict[str, set[str]] = field(default_factory=dict)
    """Object -> verbs (`clean`, `heat`, `cool`) whose effect still holds."""

    @classmethod
    def from_context(cls, context: Context) -> Beliefs:
        """Read the whole transcript of `context`, oldest observation first."""
        beliefs = cls()
        for text in (*(turn.observation for turn in context.history), context.observation):
            beliefs.observe(text)
        return beliefs

    def observe(self, text: str) -> None:
        """Update from one observation."""
        if match := _ROOM.search(text):
            self.receptacles = _ARTICLE.findall(match[1])
        if match := _ARRIVED.search(text):
            self.position = match[1]
        if match := _CONTENTS.search(text):
            self.contents[match[1]] = _ARTICLE.findall(match[2])
        if match := _CARRYING.search(text):
            self.held = match[1]
        if match := _TAKEN.search(text):
            self.held = match[1]
            self.contents[match[2]] = [name for name in self.contents.get(match[2], []) if name != match[1]]
        if match := _PUT.search(text):
            self.held = None
            self.contents[match[2]] = [*self.contents.get(match[2], []), match[1]]
        if match := _TREATED.search(text):
            verbs = self.treated.setdefault(match[2], set())
            verbs -= {"heat", "cool"} if match[1] in ("heat", "cool") else set()
            verbs.add(match[1])

    def unseen(self) -> list[str]:
        """Receptacles whose contents have not been seen."""
        return [name for name in self.receptacles if name not in self.contents]

    def known(self, object_kind: str) -> list[tuple[str, str]]:
        """(object, receptacle) of each observed object of a kind, those at the agent's position first."""
        objects = [
            (name, r) for r in self.receptacles for name in self.contents.get(r, ()) if kind(name) == object_kind
        ]
        return sorted(objects, key=lambda pair: pair[1] != self.position)
