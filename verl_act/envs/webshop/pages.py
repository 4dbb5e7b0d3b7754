"""What a page says, word for word as in WebShop's text environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import NamedTuple

from verl_act.envs.webshop.actions import BACK, BUY, NEXT, PREVIOUS
from verl_act.envs.webshop.catalogue import Catalogue
from verl_act.envs.webshop.goals import Goal
from verl_act.envs.webshop.session import SUB_PAGES, Page, State

SEPARATOR = " [SEP] "


class Kind(Enum):
    """What a part of a page is, which only the rich style shows."""

    TEXT = auto()
    INSTRUCTION = auto()
    BUTTON = auto()
    OPTION = auto()
    CHOSEN_OPTION = auto()
    PRODUCT = auto()
    VISITED_PRODUCT = auto()


class Part(NamedTuple):
    kind: Kind
    text: str


def page_parts(state: State, goal: Goal, catalogue: Catalogue, reward: float) -> list[Part]:
    """The parts of the page, top down. `reward` is shown after a purchase."""
    if state.page is Page.DONE:
        return _parts(Kind.TEXT, _receipt(catalogue.product(state.row).asin, dict(state.options), reward))
    start = state.page is Page.SEARCH
    instruction = _parts(Kind.INSTRUCTION, ("Instruction: " if start else "Instruction:", goal.instruction))
    if start:
        return [Part(Kind.TEXT, "WebShop"), *instruction, Part(Kind.BUTTON, "Search")]
    return [*instruction, Part(Kind.BUTTON, BACK), *_PAGES[state.page](state, catalogue)]


def _results(state: State, catalogue: Catalogue) -> Iterable[Part]:
    yield Part(Kind.TEXT, f"Page {state.number} (Total results: {len(state.hits)})")
    if state.number > 1:
        yield Part(Kind.BUTTON, PREVIOUS)
    yield Part(Kind.BUTTON, NEXT)
    for row in state.listed():
        product = catalogue.product(row)
        yield Part(Kind.VISITED_PRODUCT if row in state.visited else Kind.PRODUCT, product.asin)
        yield from _parts(Kind.TEXT, (product.name, product.price_tag))


def _item(state: State, catalogue: Catalogue) -> Iterable[Part]:
    product, address = catalogue.product(state.row), _address(state)
    yield Part(Kind.BUTTON, PREVIOUS)
    for name, values in product.options:
        yield from _parts(Kind.TEXT, (name,))
        for value in values:
            yield from _parts(Kind.CHOSEN_OPTION if f'"{value}"' in address else Kind.OPTION, (value,))
    yield from _parts(Kind.TEXT, (product.name, f"Price: {product.price_tag}", "Rating: N.A."))
    yield from _parts(Kind.BUTTON, (*SUB_PAGES, BUY))


def _address(state: State) -> str:
    """The end of an item page's address, in which WebShop looks for an option value in quotes to show it as clicked.

    So values with letters beyond ASCII, quotes or backslashes never are, which JSON writes otherwise, and a name of an
    option or a word of the search may be.
    """
    return f"{state.query.replace(' ', '+')}/{state.number}/{json.dumps(dict(state.options))}"


def _sub_page(state: State, catalogue: Catalogue) -> Iterable[Part]:
    """WebShop ships no reviews, so their page is empty."""
    product = catalogue.product(state.row)
    yield Part(Kind.BUTTON, PREVIOUS)
    if state.page is Page.DESCRIPTION:
        yield from _parts(Kind.TEXT, (product.description,))
    elif state.page is Page.FEATURES:
        yield from _parts(Kind.TEXT, (f" {bullet}" for bullet in product.bullets))


def _receipt(asin: str, options: dict[str, str], reward: float) -> Iterable[str]:
    """WebShop's last page, with the fields that its text environment leaves empty."""
    yield "Thank you for shopping with us!"
    yield from ("Your code: ", "None", " (Paste it in your MTurk interface.)")
    yield from ("Purchased", "asin", asin, "options", json.dumps(options, sort_keys=True).translate(_NO_MARKUP))
    yield from ("attrs", "None", "category", "None", "query", "None", "product category", "None")
    yield from ("Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category")
    yield from ("query", "Goal ", "None", "Reward", "Your score (min 0.0, max 1.0)", str(reward))
    yield from ("Reward Details ", "None")


_NO_MARKUP = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&'"}
"""How Jinja writes these in JSON."""


def _parts(kind: Kind, texts: Iterable[str]) -> list[Part]:
    return [Part(kind, shown) for text in texts if (shown := _shown(text))]


def _shown(text: str) -> str:
    """`text` as BeautifulSoup reads it: of blanks alone one is left, or a line break, which WebShop leaves out."""
    if text.strip(" \n\t\f\r"):
        return text
    return " " if text and "\n" not in text else ""


_PAGES: dict[Page, Callable[[State, Catalogue], Iterable[Part]]] = {
    Page.RESULTS: _results,
    Page.ITEM: _item,
    **dict.fromkeys(SUB_PAGES, _sub_page),
}


def plain(parts: Iterable[Part]) -> str:
    """WebShop's observation `text`."""
    return SEPARATOR.join(part.text.strip() for part in parts)


def brief(parts: Iterable[Part]) -> str:
    """As `plain`, without the instruction: prompts show it as the goal anyway."""
    return plain(part for part in parts if part.kind is not Kind.INSTRUCTION)


def rich(parts: Iterable[Part]) -> str:
    """WebShop's observation `text_rich`: buttons are marked, and what has been clicked is said first."""
    text = ""
    for kind, said in parts:
        if kind is Kind.CHOSEN_OPTION:
            text = f"You have clicked {said}.\n{text}"
        text += f"{_MARKED.get(kind, '{}').format(said)}\n"
    return text


_MARKED = {
    Kind.BUTTON: "[button] {} [button_]",
    Kind.OPTION: "  [button] {} [button_]",
    Kind.CHOSEN_OPTION: "  [clicked button] {} [clicked button_]",
    Kind.PRODUCT: "\n[button] {} [button_]",
    Kind.VISITED_PRODUCT: "\n[clicked button] {} [clicked button_]",
}

STYLES: dict[str, Callable[[Iterable[Part]], str]] = {"text": plain, "brief": brief, "text_rich": rich}
