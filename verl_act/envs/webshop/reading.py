"""Parse the text of a page, in any style."""

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
    """A product among the results; `price` is in US dollars, the lower one of a range."""

    asin: str
    title: str
    price: float


@dataclass(frozen=True, slots=True)
class ParsedPage:
    """A parsed page. Fields that the page does not have are empty.

    `between` holds the option names and values of an item page, in order; only the clickables tell them apart.
    """

    page: Page
    listed: tuple[Listed, ...] = ()
    more: bool = False
    """Whether there is another page of results."""
    title: str = ""
    between: tuple[str, ...] = ()
    text: str = ""


def read_page(observation: str) -> ParsedPage:
    """Parse an observation of any style. All detail pages of a product count as `Page.DESCRIPTION`."""
    texts = _split(observation)
    if total := next((match for text in texts if (match := _TOTAL.fullmatch(text))), None):
        rest = texts[texts.index(NEXT) + 1 :] if NEXT in texts else []
        listed = tuple(
            Listed(asin.lower(), title, float(price[1]))
            for asin, title, tag in zip(rest[::3], rest[1::3], rest[2::3], strict=False)
            if (price := _PRICE.match(tag))
        )
        return ParsedPage(Page.RESULTS, listed, int(total[1]) * 10 < int(total[2]))
    if texts and texts[-1] == BUY:
        prices = (index for index, text in enumerate(texts) if _PRICE.match(text) and text.startswith("Price"))
        price_index = next(prices, 0)
        return ParsedPage(
            Page.ITEM, title=texts[price_index - 1], between=tuple(texts[_behind(PREVIOUS, texts) : price_index - 1])
        )
    if BACK in texts:
        return ParsedPage(Page.DESCRIPTION, text=" ".join(texts[_behind(PREVIOUS, texts) :]))
    return ParsedPage(Page.SEARCH)


def _split(observation: str) -> list[str]:
    if SEPARATOR in observation:
        return [text.strip() for text in observation.split(SEPARATOR)]
    lines = (line.strip() for line in observation.splitlines())
    return [match[1] if (match := _MARKED.fullmatch(line)) else line for line in lines if line]


def _behind(button: str, texts: Sequence[str]) -> int:
    return texts.index(button) + 1 if button in texts else len(texts)


def options_on(reading: ParsedPage, admissible: Sequence[str]) -> dict[str, list[str]]:
    """Return the options of an item page with their values; `admissible` are the actions that the page offers."""
    options: dict[str, list[str]] = {}
    name = ""
    for text in reading.between:
        if f"click[{text}]" in admissible:
            options.setdefault(name, []).append(text)
        else:
            name = text
    return options
