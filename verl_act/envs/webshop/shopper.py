"""The expert that shops like a person: it searches, opens the best-looking product, reads, chooses options, and buys.

It sees only the transcript, so its actions can be inferred from the transcript.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from verl_act.envs.base import Environment, Task
from verl_act.envs.ties import TieBreaker
from verl_act.envs.webshop.actions import BUY, NEXT, PREVIOUS, click
from verl_act.envs.webshop.analysis import index_terms
from verl_act.envs.webshop.instruction import WORD, content_words, likely_search, price_limit
from verl_act.envs.webshop.reading import ParsedPage, options_on, read_page
from verl_act.envs.webshop.reward import COLORS
from verl_act.envs.webshop.session import SUB_PAGES, Page
from verl_act.schema import Context

_STEPS = 15
"""The shopper's step limit: WebShop's usual one."""
_TO_READ = (Page.FEATURES, Page.DESCRIPTION)

_ONLY_OPTIONS = frozenset(index_terms(" ".join((*COLORS, "x", "xx", "3x", "small", "medium", "large", "pack"))))
"""Terms that only options show, so reading details does not help: sizes and colors; numbers too."""


class ShopperExpert:
    """Wins most goals without knowing more than the agent.

    An action is *inferable* if its rules determine it: search for the instruction's words; open the first affordable
    unopened product; read the details of a product that does not show all requested terms yet, and leave it if they
    stay missing; choose the requested options; buy. Where several actions rank equal, one is sampled by task and seed:
    between the options left to choose, and between the opened products that miss the fewest terms.
    """

    def __init__(self) -> None:
        self._ties = TieBreaker()

    def reset(self, task: Task, seed: int) -> None:
        self._ties = TieBreaker.of(task, seed)

    def act(self, context: Context, environment: Environment | None = None) -> tuple[str, bool]:
        """Return the next action and whether it is inferable; `environment` is not used."""
        best = best_actions(context)
        return self._ties.sample(best, len(context.history)), len(best) == 1

    def ties(self, context: Context) -> tuple[str, ...]:
        best = best_actions(context)
        return tuple(best) if len(best) > 1 else ()


def best_actions(context: Context) -> Sequence[str]:
    """The actions that rank first, each once."""
    trip = _Trip.from_context(context)
    if trip.now.page is Page.RESULTS:
        return _choose_product(trip)
    if trip.now.page is Page.ITEM:
        return _examine_product(trip, context.admissible_actions)
    return [f"search[{likely_search(context.goal)}]" if trip.now.page is Page.SEARCH else click(PREVIOUS)]


@dataclass(slots=True)
class _Visit:
    """The pages of one product that were seen so far."""

    times: int = 0
    """How often its page was opened."""
    read: set[str] = field(default_factory=set)
    """The actions of the detail pages that were read."""
    terms: set[str] = field(default_factory=set)
    """The terms of its title, options and read pages."""
    chosen: list[str] = field(default_factory=list)
    """Option values clicked since it was last opened."""


@dataclass(slots=True)
class _Trip:
    """The episode so far, reconstructed from the transcript."""

    goal: str
    now: ParsedPage
    steps_left: int
    requested: tuple[str, ...]
    """The terms of the instruction."""
    visits: dict[str, _Visit] = field(default_factory=dict)
    current: str = ""
    """The asin of the current product."""

    @classmethod
    def from_context(cls, context: Context) -> _Trip:
        requested = tuple(dict.fromkeys(index_terms(" ".join(content_words(context.goal)))))
        trip = cls(context.goal, ParsedPage(Page.SEARCH), _STEPS - len(context.history), requested)
        for turn in context.history:
            trip._see(turn.observation)
            trip._do(turn.action)
        trip._see(context.observation)
        return trip

    def _see(self, observation: str) -> None:
        self.now = read_page(observation)
        if visit := self.visits.get(self.current):
            visit.terms.update(index_terms(" ".join((self.now.title, *self.now.between, self.now.text))))

    def _do(self, action: str) -> None:
        target = action.removeprefix("click[").removesuffix("]").lower()
        if self.now.page is Page.RESULTS and any(listed.asin == target for listed in self.now.listed):
            self.current = target
            visit = self.visits.setdefault(target, _Visit())
            visit.times += 1
            visit.chosen = []
        elif self.now.page is Page.ITEM and self.current:
            visit = self.visits[self.current]
            if action in map(click, SUB_PAGES):
                visit.read.add(action)
            elif target in self.now.between:
                visit.chosen.append(target)

    def open_terms(self, visit: _Visit) -> list[str]:
        """Return the requested terms that were not seen at the product."""
        return [term for term in self.requested if term not in visit.terms]


def _choose_product(trip: _Trip) -> list[str]:
    """Open the first affordable unopened product; else turn the page; else go back to the best opened product.

    The order of results is more informative than their titles: the search also covers descriptions and options.
    """
    limit = price_limit(trip.goal)
    fresh = [
        listed for listed in trip.now.listed if listed.asin not in trip.visits and (not limit or listed.price <= limit)
    ]
    if fresh and (trip.steps_left >= 3 or not trip.visits):
        return [click(fresh[0].asin)]
    if trip.now.more and trip.steps_left >= 5:
        return [click(NEXT)]
    known = [listed.asin for listed in trip.now.listed if listed.asin in trip.visits]
    missing = {asin: len(trip.open_terms(trip.visits[asin])) for asin in known}
    if missing:
        return [click(asin) for asin, terms in missing.items() if terms == min(missing.values())]
    return [f"search[{likely_search(trip.goal)}]"]


def _examine_product(trip: _Trip, admissible: Sequence[str]) -> list[str]:
    """Read the details while requested terms are missing; then choose options and buy, or leave."""
    visit = trip.visits.setdefault(trip.current, _Visit(times=2))
    options = options_on(trip.now, admissible).values()
    requested = [value for values in options if (value := _requested_value(values, trip.goal))]
    to_click = [value for value in requested if value not in visit.chosen]
    left = trip.steps_left - len(to_click) - 1
    missing = trip.open_terms(visit)
    if missing and visit.times < 2 and not visit.chosen:
        unread = [action for action in map(click, _TO_READ) if action not in visit.read and action in admissible]
        worth_reading = unread and not any(term[0].isdigit() or term in _ONLY_OPTIONS for term in missing)
        if left >= 2:
            return [unread[0] if worth_reading else click(PREVIOUS)]
    if to_click:
        return [f"click[{value}]" for value in dict.fromkeys(to_click)]
    return [click(BUY)]


def _requested_value(values: Sequence[str], goal: str) -> str | None:
    """Return the value that the instruction names; of several, the first with the most words."""
    text = f" {' '.join(WORD.findall(goal.lower()))} "
    named = [
        (len(words), value) for value in values if (words := WORD.findall(value)) and f" {' '.join(words)} " in text
    ]
    return max(named, key=lambda pair: pair[0])[1] if named else None
