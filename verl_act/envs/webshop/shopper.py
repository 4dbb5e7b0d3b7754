"""The expert that shops like a person: it searches, opens what looks best, reads, chooses, and buys.

It acts on the transcript alone, so its actions can be judged from the transcript.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from verl_act.envs.base import Environment, Task
from verl_act.envs.webshop.actions import BUY, NEXT, PREVIOUS
from verl_act.envs.webshop.instruction import asked_words, likely_search, price_limit
from verl_act.envs.webshop.reading import Listed, Reading, options_on, read_page
from verl_act.envs.webshop.reward import COLORS
from verl_act.envs.webshop.search import Analyzer
from verl_act.envs.webshop.session import SUB_PAGES, Page
from verl_act.schema import Context

_STEPS = 15
"""Actions that the shopper allows itself: WebShop's usual limit."""
_TO_READ = (Page.FEATURES, Page.DESCRIPTION)

_TERMS = Analyzer().terms
_ONLY_OPTIONS = frozenset(_TERMS(" ".join((*COLORS, "x", "xx", "3x", "small", "medium", "large", "pack"))))
"""Terms that come as option values; so do numbers."""
_TOKEN = re.compile(r"\w+(?:[.'’-]\w+)*")


class ShopperExpert:
    """Wins most goals without knowing more than the agent.

    An action is *inferable* when the context decides it: the search with the instruction's words; opening the first
    affordable product not opened yet, unless another title says more of what is asked for; reading about a product
    that leaves some of it open, and leaving it when it stays open; choosing the option values that are asked for;
    buying what leaves nothing open. Opening against the titles, or buying for want of steps, is a guess.
    """

    def reset(self, task: Task) -> None:
        """Nothing to prepare: everything is in the context."""

    def act(self, context: Context, environment: Environment | None = None) -> tuple[str, bool]:
        """The next action and whether it is inferable; `environment` is not asked."""
        trip = _Trip.from_context(context)
        if trip.now.page is Page.RESULTS:
            return _choose_product(trip)
        if trip.now.page is Page.ITEM:
            return _examine_product(trip, context.admissible_actions)
        if trip.now.page is Page.SEARCH:
            return f"search[{likely_search(context.goal)}]", True
        return _click(PREVIOUS), True


@dataclass(slots=True)
class _Visit:
    """What has been seen of one product."""

    times: int = 0
    """How often its page has been opened."""
    read: set[str] = field(default_factory=set)
    """Its detail pages that have been read, by the actions that open them."""
    terms: set[str] = field(default_factory=set)
    """The terms of its title, options and read pages."""
    chosen: list[str] = field(default_factory=list)
    """Values clicked since it was opened last."""


@dataclass(slots=True)
class _Trip:
    """The episode so far, as the transcript tells it."""

    goal: str
    now: Reading
    steps: int
    wanted: tuple[str, ...]
    """The terms of what is asked for."""
    visits: dict[str, _Visit] = field(default_factory=dict)
    current: str = ""
    """The product looked at."""

    @classmethod
    def from_context(cls, context: Context) -> _Trip:
        wanted = tuple(dict.fromkeys(_TERMS(" ".join(asked_words(context.goal)))))
        trip = cls(context.goal, Reading(Page.SEARCH), len(context.history), wanted)
        for turn in context.history:
            trip._see(turn.observation)
            trip._do(turn.action)
        trip._see(context.observation)
        return trip

    def _see(self, observation: str) -> None:
        self.now = read_page(observation)
        if visit := self.visits.get(self.current):
            visit.terms.update(_TERMS(" ".join((self.now.title, *self.now.between, self.now.text))))

    def _do(self, action: str) -> None:
        target = action.removeprefix("click[").removesuffix("]").lower()
        if self.now.page is Page.RESULTS and any(listed.asin == target for listed in self.now.listed):
            self.current = target
            visit = self.visits.setdefault(target, _Visit())
            visit.times += 1
            visit.chosen = []
        elif self.now.page is Page.ITEM and self.current:
            visit = self.visits[self.current]
            if action in map(_click, SUB_PAGES):
                visit.read.add(action)
            elif target in self.now.between:
                visit.chosen.append(target)

    def steps_left(self) -> int:
        return _STEPS - self.steps

    def open_terms(self, visit: _Visit) -> list[str]:
        """What is asked for and not seen at the product."""
        return [term for term in self.wanted if term not in visit.terms]


def _choose_product(trip: _Trip) -> tuple[str, bool]:
    """Open the first affordable product not opened yet; else turn the page; else go back to the best that was opened.

    The order of the results says more than their titles do: the search reads descriptions and options, too.
    """
    limit = price_limit(trip.goal)
    fresh = [
        listed for listed in trip.now.listed if listed.asin not in trip.visits and (not limit or listed.price <= limit)
    ]
    if fresh and (trip.steps_left() >= 3 or not trip.visits):
        said = [_title_says(listed, trip.wanted) for listed in fresh]
        return _click(fresh[0].asin), said[0] == max(said)
    if trip.now.more and trip.steps_left() >= 5:
        return _click(NEXT), True
    known = [listed.asin for listed in trip.now.listed if listed.asin in trip.visits]
    if known:
        return _click(min(known, key=lambda asin: len(trip.open_terms(trip.visits[asin])))), False
    return f"search[{likely_search(trip.goal)}]", False


def _title_says(listed: Listed, wanted: Iterable[str]) -> int:
    """How many of the wanted terms."""
    return len({*wanted} & {*_TERMS(listed.title)})


def _examine_product(trip: _Trip, admissible: Sequence[str]) -> tuple[str, bool]:
    """Read on while something asked for is open; then choose and buy, or leave."""
    visit = trip.visits.setdefault(trip.current, _Visit(times=2))
    asked = [
        value for values in options_on(trip.now, admissible).values() if (value := _asked_value(values, trip.goal))
    ]
    to_click = [value for value in asked if value not in visit.chosen]
    left = trip.steps_left() - len(to_click) - 1
    missing = trip.open_terms(visit)
    if missing and visit.times < 2 and not visit.chosen:
        unread = [action for action in map(_click, _TO_READ) if action not in visit.read and action in admissible]
        worth_reading = bool(unread) and not any(map(_only_an_option, missing))
        if left >= 2:
            return unread[0] if worth_reading else _click(PREVIOUS), True
    if to_click:
        return f"click[{to_click[0]}]", True
    return _click(BUY), not missing


def _only_an_option(term: str) -> bool:
    """Whether reading on would not help: a number, a size or a color."""
    return term[0].isdigit() or term in _ONLY_OPTIONS


def _asked_value(values: Sequence[str], goal: str) -> str | None:
    """The value that the instruction names: of several, the one of most words."""
    said = f" {' '.join(_TOKEN.findall(goal.lower()))} "
    named = [
        (len(words), value) for value in values if (words := _TOKEN.findall(value)) and f" {' '.join(words)} " in said
    ]
    return max(named, key=lambda pair: pair[0])[1] if named else None


def _click(target: str) -> str:
    return f"click[{target.lower()}]"
