"""The fewest actions to a purchase of reward 1.0 (privileged): what tells a good action from a bad one.

Any product that earns 1.0 counts, not only the one that the instruction was written for. A search is possible on every
page, so the shortest way is one of a handful: from here, or by the search that the instruction suggests, or by the name
of a winning product. In a catalogue of more than `SCANNED` products the winners are looked for among the hits of likely
searches only; a plan may then be longer than the shortest, by the option clicks that another product would save, and
there may be none although a search that nobody thought of would lead to a winner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from verl_act.envs.webshop.actions import BUY, NEXT, PREVIOUS
from verl_act.envs.webshop.catalogue import Catalogue
from verl_act.envs.webshop.goals import AskedOption, Goal
from verl_act.envs.webshop.instruction import LONGEST_SEARCH, likely_search
from verl_act.envs.webshop.nouns import Nouns
from verl_act.envs.webshop.product import Product
from verl_act.envs.webshop.reward import attributes_met, options_alike, type_factor
from verl_act.envs.webshop.session import ON_A_PAGE, SUB_PAGES, Page, State

SCANNED = 5000
"""Products of which each is examined, 50 microseconds each and goal."""

Actions = tuple[str, ...]


class Planner:
    """Plans for one goal. Remembers what it has found out about products."""

    def __init__(self, catalogue: Catalogue, goal: Goal, nouns: Nouns) -> None:
        self._catalogue = catalogue
        self._goal = goal
        self._nouns = nouns
        self._fits: dict[int, bool] = {}

    def plan(self, state: State) -> Actions | None:
        """The shortest sequence of actions from `state`, of equal ones the one nearest by. None if none is found."""
        plans = [plan for plan in (*self._from_here(state), self._from_a_search) if plan is not None]
        return min(plans, key=len, default=None)

    def _from_here(self, state: State) -> Iterator[Actions | None]:
        if state.page in SUB_PAGES:
            yield from (_after(PREVIOUS, plan) for plan in self._from_item(state))
        elif state.page is Page.ITEM:
            yield from self._from_item(state)
        elif state.page is Page.RESULTS:
            yield self._from_results(state.hits, state.number)

    def _from_item(self, state: State) -> Iterator[Actions | None]:
        yield self._purchase(state.row, dict(state.options))
        yield _after(PREVIOUS, self._from_results(state.hits, state.number))

    def _from_results(self, hits: tuple[int, ...], number: int) -> Actions | None:
        """Turn to a winning product among `hits`, open it and buy it."""
        plans = []
        for place, row in enumerate(hits):
            purchase = self._purchase(row, {})
            if purchase is not None:
                turns = place // ON_A_PAGE + 1 - number
                turning = (_click(NEXT if turns > 0 else PREVIOUS),) * abs(turns)
                plans.append((*turning, _click(self._catalogue.product(row).asin), *purchase))
        return min(plans, key=len, default=None)

    @cached_property
    def _from_a_search(self) -> Actions | None:
        """The same from every page. No way is shorter than searching, opening, choosing options and buying."""
        best = self._by_searching(likely_search(self._goal.instruction))
        priced = [(len(purchase), row) for row in self._likely_rows() if (purchase := self._purchase(row, {}))]
        for length, row in sorted(priced):
            if best is not None and len(best) <= 2 + length:
                break
            found = self._by_searching(self._catalogue.product(row).name)
            if found is not None and (best is None or len(found) < len(best)):
                best = found
        return best

    def _by_searching(self, text: str) -> Actions | None:
        text = " ".join(text.replace("[", " ").replace("]", " ").split())[:LONGEST_SEARCH]
        if not text:
            return None
        plan = self._from_results(self._catalogue.search(text.lower()), 1)
        return None if plan is None else (f"search[{text}]", *plan)

    def _likely_rows(self) -> Iterable[int]:
        if len(self._catalogue) <= SCANNED:
            return range(len(self._catalogue))
        named = self._catalogue.search(self._goal.name.lower())
        return dict.fromkeys((self._goal.row, *named, *self._catalogue.search(likely_search(self._goal.instruction))))

    def _purchase(self, row: int, chosen: Mapping[str, str]) -> Actions | None:
        """The clicks on the page of `row` that choose what is missing and buy; None where they cannot earn 1.0."""
        product = self._catalogue.product(row)
        if row not in self._fits:
            self._fits[row] = fits(product, self._goal, self._nouns)
        if not self._fits[row]:
            return None
        missing = missing_options(product, self._goal.options, chosen)
        return None if missing is None else tuple(map(_click, (*missing, BUY)))


def fits(product: Product, goal: Goal, nouns: Nouns) -> bool:
    """Whether the product meets all of the goal that does not depend on its options."""
    return (
        product.price <= goal.price_upper
        and attributes_met(product, goal.attributes) == len(goal.attributes)
        and type_factor(product, goal, nouns) == 1.0
    )


def missing_options(product: Product, asked: tuple[AskedOption, ...], chosen: Mapping[str, str]) -> Actions | None:
    """The fewest option values to click so that every option in `asked` is met; None where it cannot be.

    `chosen` are the values chosen already, by option; a click replaces the value of its option.
    """
    everything = (1 << len(asked)) - 1
    # What is met (a bit an asked option) by the options gone through so far -> the fewest clicks for it.
    ways: dict[int, Actions] = {0: ()}
    for name in dict(product.options):
        met_by = {value: _met(value, asked) for value, of in product.option_of.items() if of == name}
        kept = _met(chosen[name], asked) if name in chosen else 0
        useful = {met: value for value, met in reversed(met_by.items()) if met}
        extended: dict[int, Actions] = {}
        for met, clicks in ways.items():
            for more, clicked in ((kept, ()), *((bits, (value,)) for bits, value in useful.items())):
                known = extended.get(met | more)
                if known is None or len(clicks) + len(clicked) < len(known):
                    extended[met | more] = (*clicks, *clicked)
        ways = extended
    return ways.get(everything)


def _met(value: str, asked: tuple[AskedOption, ...]) -> int:
    return sum(1 << at for at, wanted in enumerate(asked) if options_alike(value, wanted))


def _after(target: str, plan: Actions | None) -> Actions | None:
    return None if plan is None else (_click(target), *plan)


def _click(target: str) -> str:
    return f"click[{target.lower()}]"
