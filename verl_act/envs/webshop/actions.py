"""The form of actions, and the buttons that they name."""

from __future__ import annotations

BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
DETAILS = "Description", "Features", "Reviews"
"""The buttons of an item's page that open a page of its own."""

_TAKEN = frozenset(name.lower() for name in (BACK, PREVIOUS, *DETAILS, BUY, "Search"))
"""What a click on an item's page never takes for an option: its buttons, and `search`, which WebShop never clicks."""


def parse_action(action: str) -> tuple[str, str] | None:
    """The name of an action and its argument, as WebShop's pattern `(.+)\\[(.+)\\]` finds them; None where it does not.

    The argument begins behind the last opening bracket, so none can stand in it, and ends before the last closing one.
    A line break ends the action; what follows the last bracket is left out.
    """
    line = action.partition("\n")[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(0, end - 1))
    return (line[:start], line[start + 1 : end]) if start > 0 else None


def can_choose(value: str) -> bool:
    """Whether a click can name the option value, and means it. (One called `attributes` opens a hidden page in WebShop;
    here it is chosen.)
    """
    return parse_action(f"click[{value}]") == ("click", value) and value not in _TAKEN
