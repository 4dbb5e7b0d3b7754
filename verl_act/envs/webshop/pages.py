"""The text of pages, word for word as in WebShop's text environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import NamedTuple

from verl_act.envs.webshop.actions import BACK, BUY, NEXT, PREVIOUS
from verl_act.envs.webshop.catalogue import Catalogue
from verl_act.envs.webshop.goals import Goal
from verl_act.envs.webshop.session import SUB_PAGES, Page, ShopState

SEPARATOR = " [SEP] "


class PartKind(Enum):
    """The role of a part of a page, which only the rich style shows."""

    TEXT = auto()
    INSTRUCTION = auto()
    BUTTON = auto()
    OPTION = auto()
    CHOSEN_OPTION = auto()
    PRODUCT = auto()
    VISITED_PRODUCT = auto()


class PagePart(NamedTuple):
    kind: PartKind
    text: str


def page_parts(state: ShopState, goal: Goal, catalogue: Catalogue, reward: float) -> list[PagePart]:
    """Return the parts of the page, top down. `reward` is shown after a purchase."""
    if state.page is Page.DONE:
        return _parts(PartKind.TEXT, _receipt(catalogue.product(state.row).asin, dict(state.options), reward))
    start = state.page is Page.SEARCH
    instruction = _parts(PartKind.INSTRUCTION, ("Instruction: " if start else "Instruction:", goal.instruction))
    if start:
        return [PagePart(PartKind.TEXT, "WebShop"), *instruction, PagePart(PartKind.BUTTON, "Search")]
    show = _results if state.page is Page.RESULTS else _item if state.page is Page.ITEM else _sub_page
    return [*instruction, PagePart(PartKind.BUTTON, BACK), *show(state, catalogue)]


def _results(state: ShopState, catalogue: Catalogue) -> Iterable[PagePart]:
    yield PagePart(PartKind.TEXT, f"Page {state.page_number} (Total results: {len(state.hits)})")
    if state.page_number > 1:
        yield PagePart(PartKind.BUTTON, PREVIOUS)
    yield PagePart(PartKind.BUTTON, NEXT)
    for row in state.listed():
        product = catalogue.product(row)
        yield PagePart(PartKind.VISITED_PRODUCT if row in state.visited else PartKind.PRODUCT, product.asin)
        yield from _parts(PartKind.TEXT, (product.name, product.price_tag))


def _item(state: ShopState, catalogue: Catalogue) -> Iterable[PagePart]:
    product, address = catalogue.product(state.row), _address(state)
    yield PagePart(PartKind.BUTTON, PREVIOUS)
    for name, values in product.options:
        yield from _parts(PartKind.TEXT, (name,))
        for value in values:
            yield from _parts(PartKind.CHOSEN_OPTION if f'"{value}"' in address else PartKind.OPTION, (value,))
    yield from _parts(PartKind.TEXT, (product.name, f"Price: {product.price_tag}", "Rating: N.A."))
    yield from _parts(PartKind.BUTTON, (*SUB_PAGES, BUY))


def _address(state: ShopState) -> str:
    """Return the end of an item page's URL. WebShop shows an option value as clicked if the URL contains it in quotes.

    So values that JSON escapes (non-ASCII letters, quotes, backslashes) are never shown as clicked, and the name of an
    option or a word of the search may be.
    """
    return f"{state.query.replace(' ', '+')}/{state.page_number}/{json.dumps(dict(state.options))}"


def _sub_page(state: ShopState, catalogue: Catalogue) -> Iterable[PagePart]:
    """Yield a detail page. WebShop has no reviews, so their page is empty."""
    product = catalogue.product(state.row)
    yield PagePart(PartKind.BUTTON, PREVIOUS)
    if state.page is Page.DESCRIPTION:
        yield from _parts(PartKind.TEXT, (product.description,))
    elif state.page is Page.FEATURES:
        yield from _parts(PartKind.TEXT, (f" {bullet}" for bullet in product.bullets))


def _receipt(asin: str, options: dict[str, str], reward: float) -> Iterable[str]:
    """Yield WebShop's last page, including the fields that its text environment leaves empty."""
    yield "Thank you for shopping with us!"
    yield from ("Your code: ", "None", " (Paste it in your MTurk interface.)")
    yield from ("Purchased", "asin", asin, "options", json.dumps(options, sort_keys=True).translate(_NO_MARKUP))
    yield from ("attrs", "None", "category", "None", "query", "None", "product category", "None")
    yield from ("Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category")
    yield from ("query", "Goal ", "None", "Reward", "Your score (min 0.0, max 1.0)", str(reward))
    yield from ("Reward Details ", "None")


_NO_MARKUP = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&'"}
"""Jinja's escapes for these characters in JSON."""


def _parts(kind: PartKind, texts: Iterable[str]) -> list[PagePart]:
    return [PagePart(kind, visible) for text in texts if (visible := _visible(text))]


def _visible(text: str) -> str:
    """Return `text` as BeautifulSoup reads it: whitespace becomes one space, or a line break, which WebShop drops."""
    if text.strip(" \n\t\f\r"):
        return text
    return " " if text and "\n" not in text else ""


def plain(parts: Iterable[PagePart]) -> str:
    """Render WebShop's observation `text`."""
    return SEPARATOR.join(page_part.text.strip() for page_part in parts)


def brief(parts: Iterable[PagePart]) -> str:
    """Render `plain` without the instruction, which prompts show as the goal anyway."""
    return plain(page_part for page_part in parts if page_part.kind is not PartKind.INSTRUCTION)


def rich(parts: Iterable[PagePart]) -> str:
    """Render WebShop's observation `text_rich`: it marks buttons and lists clicked options first."""
    text = ""
    for kind, content in parts:
        if kind is PartKind.CHOSEN_OPTION:
            text = f"You have clicked {content}.\n{text}"
        text += f"{_MARKED.get(kind, '{}').format(content)}\n"
    return text


_MARKED = {
    PartKind.BUTTON: "[button] {} [button_]",
    PartKind.OPTION: "  [button] {} [button_]",
    PartKind.CHOSEN_OPTION: "  [clicked button] {} [clicked button_]",
    PartKind.PRODUCT: "\n[button] {} [button_]",
    PartKind.VISITED_PRODUCT: "\n[clicked button] {} [clicked button_]",
}

STYLES: dict[str, Callable[[Iterable[PagePart]], str]] = {"text": plain, "brief": brief, "text_rich": rich}
