"""WebShop's pages as states, and the transitions between them; no text and no side effects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from verl_act.envs.webshop.actions import BACK, BUY, NEXT, PREVIOUS, parse_action
from verl_act.envs.webshop.catalogue import Catalogue
from verl_act.envs.webshop.search import is_searchable

ON_A_PAGE = 10
"""Products per page of results."""


class Page(StrEnum):
    """The kinds of page; detail pages of an item are named like the buttons that open them."""

    SEARCH = "Search"
    RESULTS = "Results"
    ITEM = "Item"
    DESCRIPTION = "Description"
    FEATURES = "Features"
    REVIEWS = "Reviews"
    DONE = "Done"


SUB_PAGES = (Page.DESCRIPTION, Page.FEATURES, Page.REVIEWS)


@dataclass(frozen=True, slots=True)
class ShopState:
    """The state of a session. States are immutable, so one can be kept and restored.

    `hits` are the rows that the last search, `query`, returned, `page_number` is their page (from 1), `row` the current
    product, `options` its chosen values in the order of choosing, `visited` the rows opened since the start page.
    """

    page: Page = Page.SEARCH
    hits: tuple[int, ...] = ()
    page_number: int = 1
    row: int = -1
    options: tuple[tuple[str, str], ...] = ()
    visited: frozenset[int] = frozenset()
    query: str = ""

    def listed(self) -> tuple[int, ...]:
        """Return the rows that this page of results shows."""
        return self.hits[(self.page_number - 1) * ON_A_PAGE : self.page_number * ON_A_PAGE]


START = ShopState()


def clickables(state: ShopState, catalogue: Catalogue) -> tuple[str, ...]:
    """Return what can be clicked, in lower case and in WebShop's order: buttons, then products or option values."""
    if state.page is Page.RESULTS:
        turn = (PREVIOUS, NEXT) if state.page_number > 1 else (NEXT,)
        names = (BACK, *turn, *(catalogue.product(row).asin for row in state.listed()))
    elif state.page is Page.ITEM:
        names = (BACK, PREVIOUS, *SUB_PAGES, BUY, *catalogue.product(state.row).option_of)
    elif state.page in SUB_PAGES:
        names = (BACK, PREVIOUS)
    else:
        names = ()
    return tuple(dict.fromkeys(name.lower() for name in names))


def follow(state: ShopState, action: str, catalogue: Catalogue) -> ShopState | None:
    """Return the state after `action`; None if it is not admissible.

    `search[...]` works on every page, as in WebShop's text environment, and resets the chosen options; WebShop's
    debugging shortcuts (such as `<r>` for random products) are plain words here. `click[...]` accepts what the page
    offers, in upper or lower case. For the syntax of actions see `parse_action`.
    """
    parsed = parse_action(action)
    if parsed is None or state.page is Page.DONE:
        return None
    target = parsed[1].lower()
    if is_search(action):
        return ShopState(Page.RESULTS, catalogue.search(target), visited=state.visited, query=target)
    if parsed[0] == "click" and target in clickables(state, catalogue):
        return _click(state, target, catalogue)
    return None


def is_search(action: str) -> bool:
    """Whether `action` is a search, which every page accepts."""
    parsed = parse_action(action)
    return parsed is not None and parsed[0] == "search" and is_searchable(parsed[1])


def _click(state: ShopState, target: str, catalogue: Catalogue) -> ShopState:
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
        return _results(state, state.page_number)
    for page in SUB_PAGES:
        if target == page.lower():
            return replace(state, page=page)
    name = catalogue.product(state.row).option_of[target]
    return replace(state, options=tuple({**dict(state.options), name: target}.items()))


def _click_result(state: ShopState, target: str, catalogue: Catalogue) -> ShopState:
    if target in (NEXT.lower(), PREVIOUS.lower()):
        return _results(state, state.page_number + (1 if target == NEXT.lower() else -1))
    row = next(row for row in state.listed() if catalogue.product(row).asin.lower() == target)
    return replace(state, page=Page.ITEM, row=row, options=(), visited=state.visited | {row})


def _results(state: ShopState, page_number: int) -> ShopState:
    """Return a page of results; options chosen on an item page are reset."""
    return replace(state, page=Page.RESULTS, page_number=page_number, row=-1, options=())
