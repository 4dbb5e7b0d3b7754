"""What an agent can know from the transcript alone: read from the observations, never from the engine."""

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
_PUT = re.compile(
    rf"You (?:move|put) the ({_NAME}) (?:to|in/on) the ({_NAME})\."
)  # put: games made before ALFWorld 0.4
_TREATED = re.compile(rf"You (clean|heat|cool) the ({_NAME}) using the ({_NAME})\.")
_CARRYING = re.compile(rf"You are carrying: a ({_NAME})\.")


def kind(name: str) -> str:
    """`mug` of `mug 2`."""
    return name.rpartition(" ")[0]


@dataclass(slots=True)
class Beliefs:
    """The room as far as it has been seen."""

    receptacles: list[str] = field(default_factory=list)
    """In the order in which the room's description lists them."""
    place: str | None = None
    """The receptacle that the agent stands at."""
    held: str | None = None
    contents: dict[str, list[str]] = field(default_factory=dict)
    """What lies in each receptacle that has been looked into."""
    treated: dict[str, set[str]] = field(default_factory=dict)
    """Object -> verbs (`clean`, `heat`, `cool`) whose effect it still bears."""

    @classmethod
    def from_context(cls, context: Context) -> Beliefs:
        """Read the whole transcript of `context`, oldest observation first."""
        beliefs = cls()
        for turn in context.history:
            beliefs.observe(turn.observation)
        beliefs.observe(context.observation)
        return beliefs

    def observe(self, text: str) -> None:
        """Take in one observation."""
        if found := _ROOM.search(text):
            self.receptacles = _ARTICLE.findall(found[1])
        if found := _ARRIVED.search(text):
            self.place = found[1]
        if found := _CONTENTS.search(text):
            self.contents[found[1]] = _ARTICLE.findall(found[2])
        if found := _CARRYING.search(text):
            self.held = found[1]
        if found := _TAKEN.search(text):
            self.held = found[1]
            self.contents[found[2]] = [name for name in self.contents.get(found[2], []) if name != found[1]]
        if found := _PUT.search(text):
            self.held = None
            self.contents[found[2]] = [*self.contents.get(found[2], []), found[1]]
        if found := _TREATED.search(text):
            verbs = self.treated.setdefault(found[2], set())
            verbs -= {"heat", "cool"} if found[1] in ("heat", "cool") else set()
            verbs.add(found[1])

    def unseen(self) -> list[str]:
        """Receptacles whose contents have not been seen."""
        return [name for name in self.receptacles if name not in self.contents]

    def known(self, wanted: str) -> list[tuple[str, str]]:
        """Each seen object of kind `wanted` and its receptacle, those at hand first."""
        found = [(name, r) for r in self.receptacles for name in self.contents.get(r, ()) if kind(name) == wanted]
        return sorted(found, key=lambda pair: pair[1] != self.place)
