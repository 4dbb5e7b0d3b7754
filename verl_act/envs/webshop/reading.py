"""What a reader can take from a page's text, in whatever style it is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from verl_act.envs.webshop.actions import BACK, BUY, NEXT, PREVIOUS
from verl_act.envs.webshop.pages import SEPARATOR
from verl_act.envs.webshop.session import Page

_MARKED = re.compile(r"\[(?:clicked )?button\] (.*) \[(?:clicked )?button_\]")
_TOTAL = re.compile(r"Page (\d+) \(Total results: (\d+)\)")
_PRICE = re.compile(r"(?:Price: )?\$(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Listed:
    """A product among the results; `price` is the lower one where there are two, in US dollars."""

    asin: str
    title: str
    price: float


@dataclass(frozen=True, slots=True)
class Reading:
    """A page that has been read. Fields that such a page does not have are empty.

    `between` holds, on an item's page, option names and values in turn, which only the clickables tell apart.
    """

    page: Page
    listed: tuple[Listed, ...] = ()
    more: bool = False
    """Whether there are results behind this page of them."""
    title: str = ""
    between: tuple[str, ...] = ()
    text: str = ""


def read_page(observation: str) -> Reading:
    """Read an observation of any style. A page of a product's details counts as `Page.DESCRIPTION`."""
    parts = _split(observation)
    if total := next((found for part in parts if (found := _TOTAL.fullmatch(part))), None):
        rest = parts[parts.index(NEXT) + 1 :] if NEXT in parts else []
        listed = tuple(
            Listed(asin.lower(), title, float(price[1]))
            for asin, title, tag in zip(rest[::3], rest[1::3], rest[2::3], strict=False)
            if (price := _PRICE.match(tag))
        )
        return Reading(Page.RESULTS, listed, int(total[1]) * 10 < int(total[2]))
    if parts and parts[-1] == BUY:
        price_at = next((at for at, part in enumerate(parts) if _PRICE.match(part) and part.startswith("Price")), 0)
        return Reading(
            Page.ITEM, title=parts[price_at - 1], between=tuple(parts[_behind(PREVIOUS, parts) : price_at - 1])
        )
    if BACK in parts:
        return Reading(Page.DESCRIPTION, text=" ".join(parts[_behind(PREVIOUS, parts) :]))
    return Reading(Page.SEARCH)


def _split(observation: str) -> list[str]:
    if SEPARATOR in observation:
        return [part.strip() for part in observation.split(SEPARATOR)]
    lines = (line.strip() for line in observation.splitlines())
    return [found[1] if (found := _MARKED.fullmatch(line)) else line for line in lines if line]


def _behind(mark: str, parts: Sequence[str]) -> int:
    return parts.index(mark) + 1 if mark in parts else len(parts)


def options_on(reading: Reading, admissible: Sequence[str]) -> dict[str, list[str]]:
    """The options of an item's page with their values; `admissible` are the actions that the page offers."""
    options: dict[str, list[str]] = {}
    name = ""
    for part in reading.between:
        if f"click[{part}]" in admissible:
            options.setdefault(name, []).append(part)
        else:
            name = part
    return options
