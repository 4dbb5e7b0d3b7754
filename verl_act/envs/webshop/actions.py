"""The syntax of actions, and the names of buttons."""

from __future__ import annotations

BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"

_RESERVED = {name.lower() for name in (BACK, PREVIOUS, "Description", "Features", "Reviews", BUY, "Search")}
"""Names that a click on an item page never takes as an option: its buttons, and `search`, which WebShop ignores."""


def parse_action(action: str) -> tuple[str, str] | None:
    """Return the name and the argument of an action, as matched by WebShop's pattern `(.+)\\[(.+)\\]`; else None.

    The argument begins after the last opening bracket, so it contains none, and ends before the last closing one. A
    line break ends the action; text after the last bracket is ignored.
    """
    line = action.partition("\n")[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(0, end - 1))
    return (line[:start], line[start + 1 : end]) if start > 0 else None


def click(target: str) -> str:
    """Return the action that clicks on `target`."""
    return f"click[{target.lower()}]"


def can_choose(value: str) -> bool:
    """Whether a click can select the option value. (WebShop opens a hidden page for the value `attributes`; here it is
    selected.)
    """
    return parse_action(f"click[{value}]") == ("click", value) and value not in _RESERVED
