"""Find the fewest actions to a purchase of reward 1.0 (privileged), which tells good actions from bad ones.

Any product that earns 1.0 counts, not only the one that the instruction was written for. Every page allows a search, so
there are few candidates for the shortest way: from the current page, by the search that the instruction suggests, or by
the name of a winning product. In a catalogue of more than `SCANNED` products, winners are searched only among the hits
of likely searches. A plan may then have more option clicks than the shortest one, and there may be no plan although
another search would lead to a winner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property

from verl_act.envs.webshop.actions import BUY, NEXT, PREVIOUS, click
from verl_act.envs.webshop.catalogue import Catalogue
from verl_act.envs.webshop.goals import AskedOption, Goal
from verl_act.envs.webshop.instruction import LONGEST_SEARCH, likely_search
from verl_act.envs.webshop.nouns import Nouns
from verl_act.envs.webshop.product import Product
from verl_act.envs.webshop.reward import attributes_met, options_alike, type_factor
from verl_act.envs.webshop.session import ON_A_PAGE, SUB_PAGES, Page, ShopState

SCANNED = 5000
"""Up to this many products, all are examined, which takes 50 microseconds per product and goal."""

Actions = tuple[str, ...]
Rank = Callable[[str], bytes]
"""The sort key of a text: of equally good products and option clicks, those that come first are taken."""


class WebShopPlanner:
    """Plans for one goal. Caches which products fit."""

    def __init__(self, catalogue: Catalogue, goal: Goal, nouns: Nouns) -> None:
        self._catalogue = catalogue
        self._goal = goal
        self._fits = cache(lambda row: fits(catalogue.product(row), goal, nouns))

    def plan(self, state: ShopState, rank: Rank | None = None) -> Actions | None:
        """Return the shortest action sequence from `state`, preferring one without a search; None if there is none.

        By default, results and options come in the order of their page.
        """
        plans = [*self._from_here(state, rank), *self._from_a_search]
        return min(plans, key=len, default=None)

    def _from_here(self, state: ShopState, rank: Rank | None) -> Iterator[Actions]:
        if state.page is Page.RESULTS:
            yield from self._from_results(state.hits, state.page_number, rank)
        elif state.page is Page.ITEM:
            if purchase := self._purchase(state.row, dict(state.options)):
                yield (*sorted(purchase[:-1], key=rank), purchase[-1]) if rank else purchase
            yield from ((click(PREVIOUS), *plan) for plan in self._from_results(state.hits, state.page_number))
        elif state.page in SUB_PAGES:
            yield from ((click(PREVIOUS), *plan) for plan in self._from_here(replace(state, page=Page.ITEM), rank))

    def _from_results(self, hits: tuple[int, ...], page_number: int, rank: Rank | None = None) -> list[Actions]:
        """Return the ways to page to a winning product among `hits`, open it and buy it; the preferred ones first."""
        plans = []
        for index, row in enumerate(hits):
            if purchase := self._purchase(row, {}):
                turns = index // ON_A_PAGE + 1 - page_number
                turning = (click(NEXT if turns > 0 else PREVIOUS),) * abs(turns)
                plans.append((*turning, click(self._catalogue.product(row).asin), *purchase))
        return sorted(plans, key=lambda plan: rank("\n".join(plan))) if rank else plans

    @cached_property
    def _from_a_search(self) -> list[Actions]:
        """Plans that begin with a search, with the best one; they need at least a search, a click and the purchase."""
        plans = self._by_searching(likely_search(self._goal.instruction))
        priced = [(len(purchase), row) for row in self._likely_rows() if (purchase := self._purchase(row, {}))]
        for length, row in sorted(priced):
            if plans and min(map(len, plans)) <= 2 + length:
                break
            plans += self._by_searching(self._catalogue.product(row).name)
        return plans

    def _by_searching(self, text: str) -> list[Actions]:
        text = " ".join(text.replace("[", " ").replace("]", " ").split())[:LONGEST_SEARCH]
        if not text:
            return []
        return [(f"search[{text}]", *plan) for plan in self._from_results(self._catalogue.search(text.lower()), 1)]

    def _likely_rows(self) -> Iterable[int]:
        if len(self._catalogue) <= SCANNED:
            return range(len(self._catalogue))
        named = self._catalogue.search(self._goal.name.lower())
        return dict.fromkeys((self._goal.row, *named, *self._catalogue.search(likely_search(self._goal.instruction))))

    def _purchase(self, row: int, chosen: Mapping[str, str]) -> Actions | None:
        """Return the clicks on the page of `row` that choose missing options and buy; None if they cannot earn 1.0."""
        if not self._fits(row):
            return None
        missing = missing_options(self._catalogue.product(row), self._goal.options, chosen)
        return None if missing is None else tuple(map(click, (*missing, BUY)))


def fits(product: Product, goal: Goal, nouns: Nouns) -> bool:
    """Whether the product meets the goal, apart from its options."""
    return (
        product.price <= goal.price_upper
        and attributes_met(product, goal.attributes) == len(goal.attributes)
        and type_factor(product, goal, nouns) == 1.0
    )


def missing_options(product: Product, requested: tuple[AskedOption, ...], chosen: Mapping[str, str]) -> Actions | None:
    """Return the fewest option values to click so that all `requested` options are met; None if that is impossible.

    `chosen` maps options to their chosen values; a click replaces the value of its option.
    """
    everything = (1 << len(requested)) - 1
    # Maps the requested options met by the product's options so far (a bitmask) to the fewest clicks for them.
    ways: dict[int, Actions] = {0: ()}
    for name in dict(product.options):
        met_by = {value: _met(value, requested) for value, of in product.option_of.items() if of == name}
        kept = _met(chosen[name], requested) if name in chosen else 0
        useful = {met: value for value, met in reversed(met_by.items()) if met}
        extended: dict[int, Actions] = {}
        for met, clicks in ways.items():
            for more, clicked in ((kept, ()), *((bits, (value,)) for bits, value in useful.items())):
                known = extended.get(met | more)
                if known is None or len(clicks) + len(clicked) < len(known):
                    extended[met | more] = (*clicks, *clicked)
        ways = extended
    return ways.get(everything)


def _met(value: str, requested: tuple[AskedOption, ...]) -> int:
    return sum(1 << bit for bit, option in enumerate(requested) if options_alike(value, option))
