"""Where a shopper is, and where an action leads: WebShop's pages as states, free of text and of side effects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from verl_act.envs.webshop.actions import BACK, BUY, NEXT, PREVIOUS, parse_action
from verl_act.envs.webshop.catalogue import Catalogue
from verl_act.envs.webshop.search import is_searchable

ON_A_PAGE = 10
"""Products on a page of results."""


class Page(StrEnum):
    """The kinds of page; those below an item are named like the buttons that open them."""

    SEARCH = "Search"
    RESULTS = "Results"
    ITEM = "Item"
    DESCRIPTION = "Description"
    FEATURES = "Features"
    REVIEWS = "Reviews"
    DONE = "Done"


SUB_PAGES = (Page.DESCRIPTION, Page.FEATURES, Page.REVIEWS)


@dataclass(frozen=True, slots=True)
class State:
    """A page with all that led to it. The state after an action is a new one, so a state can be kept and returned to.

    `hits` are the rows that the last search, `query`, found, `number` is the page of them (from 1), `row` the product
    looked at, `options` its chosen values in the order of choosing, `visited` the rows opened since the start page.
    """

    page: Page = Page.SEARCH
    hits: tuple[int, ...] = ()
    number: int = 1
    row: int = -1
    options: tuple[tuple[str, str], ...] = ()
    visited: frozenset[int] = frozenset()
    query: str = ""

    def listed(self) -> tuple[int, ...]:
        """The rows that this page of results shows."""
        return self.hits[(self.number - 1) * ON_A_PAGE : self.number * ON_A_PAGE]


START = State()


def clickables(state: State, catalogue: Catalogue) -> tuple[str, ...]:
    """What can be clicked, in lower case and in WebShop's order: buttons, then products or option values."""
    if state.page is Page.RESULTS:
        turn = (PREVIOUS, NEXT) if state.number > 1 else (NEXT,)
        names = (BACK, *turn, *(catalogue.product(row).asin for row in state.listed()))
    elif state.page is Page.ITEM:
        names = (BACK, PREVIOUS, *SUB_PAGES, BUY, *catalogue.product(state.row).option_of)
    elif state.page in SUB_PAGES:
        names = (BACK, PREVIOUS)
    else:
        names = ()
    return tuple(dict.fromkeys(name.lower() for name in names))


def follow(state: State, action: str, catalogue: Catalogue) -> State | None:
    """The state after `action`, or None where it is not admissible and leads nowhere.

    `search[...]` works on every page, as in WebShop's text environment. `click[...]` takes what the page offers,
    whatever the case. For the form of actions see `parse_action`.
    """
    parsed = parse_action(action)
    if parsed is None or state.page is Page.DONE:
        return None
    name, argument = parsed
    if name == "search" and is_searchable(argument):
        return search(state, argument, catalogue)
    if name == "click":
        target = argument.lower()
        return _click(state, target, catalogue) if target in clickables(state, catalogue) else None
    return None


def is_search(action: str) -> bool:
    """Whether `action` is a search, which every page takes."""
    parsed = parse_action(action)
    return parsed is not None and parsed[0] == "search" and is_searchable(parsed[1])


def search(state: State, text: str, catalogue: Catalogue) -> State:
    """The first page of results. What was chosen before is forgotten.

    WebShop's shortcuts for debugging (`<r>` for random products, and the like) are plain words here.
    """
    query = text.lower()
    return State(Page.RESULTS, catalogue.search(query), visited=state.visited, query=query)


def _click(state: State, target: str, catalogue: Catalogue) -> State:
    """Click on `target`, which the page offers."""
    if target == BACK.lower():
        return START
    if state.page is Page.RESULTS:
        return _click_result(state, target, catalogue)
    if state.page in SUB_PAGES:
        return replace(state, page=Page.ITEM)
    if target == BUY.lower():
        return replace(state, page=Page.DONE)
    if target == PREVIOUS.lower():
        return _results(state, state.number)
    for page in SUB_PAGES:
        if target == page.lower():
            return replace(state, page=page)
    name = catalogue.product(state.row).option_of[target]
    return replace(state, options=tuple({**dict(state.options), name: target}.items()))


def _click_result(state: State, target: str, catalogue: Catalogue) -> State:
    if target in (NEXT.lower(), PREVIOUS.lower()):
        return _results(state, state.number + (1 if target == NEXT.lower() else -1))
    row = next(row for row in state.listed() if catalogue.product(row).asin.lower() == target)
    return replace(state, page=Page.ITEM, row=row, options=(), visited=state.visited | {row})


def _results(state: State, number: int) -> State:
    """Results do not remember what was chosen on an item's page."""
    return replace(state, page=Page.RESULTS, number=number, row=-1, options=())
