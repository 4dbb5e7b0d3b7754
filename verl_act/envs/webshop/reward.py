"""WebShop's reward for a purchase (paper section 3, `web_agent_site/engine/goal.py`), as a pure function.

    reward = type * (attributes met + options met + price met) / (attributes requested + options requested + 1)

Exact except for the nouns in the type term (see `nouns`). WebShop compares texts with thefuzz's `token_set_ratio`; this
module uses rapidfuzz, the library below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz import fuzz
from rapidfuzz.utils import default_process

from verl_act.envs.webshop.goals import AskedOption, Goal
from verl_act.envs.webshop.nouns import Nouns, embedded_nouns
from verl_act.envs.webshop.product import Product

_ALIKE = 85
"""Similarity, in percent, that a match must exceed."""
_DROPPED = dict.fromkeys(range(0x80, 0x100))

_COLOR_WORDS = """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel
    camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry
    cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green
    grey heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot
    midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple
    rainbow red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan
    taupe teal tiger turquoise violet walnut wheat white wine yellow
"""
COLORS = tuple(_COLOR_WORDS.split())
"""The first of these, in this order, that an option value contains stands for the value: `dark navy` is `dark`."""


@dataclass(frozen=True, slots=True)
class Score:
    """A purchase against a goal: how many attributes and options are met, whether the price is, and the type factor."""

    type_factor: float
    attributes: int
    options: int
    price: bool
    requested: int
    """How many attributes and options the goal has."""

    @property
    def reward(self) -> float:
        """Within 0 and 1; exactly 1.0 if the whole goal is met."""
        return self.type_factor * (self.attributes + self.options + self.price) / (self.requested + 1)


def score_purchase(product: Product, options: Mapping[str, str], goal: Goal, nouns: Nouns = embedded_nouns) -> Score:
    """Score a purchase; `options` maps option names to the chosen values."""
    return Score(
        type_factor=type_factor(product, goal, nouns),
        attributes=attributes_met(product, goal.attributes),
        options=sum(any(options_alike(chosen, option) for chosen in options.values()) for option in goal.options),
        price=product.price <= goal.price_upper,
        requested=len(goal.attributes) + len(goal.options),
    )


def type_factor(product: Product, goal: Goal, nouns: Nouns = embedded_nouns) -> float:
    """Return 1.0 for a product of the goal's type: same query, two common categories, or over a fifth common nouns.

    Otherwise 0.5, but 0.1 if less than a tenth of the goal's nouns are common, and 0.0 if none are.
    """
    shared = common_nouns(product.name, goal.name, nouns)
    if shared == 0:
        return 0.0
    if shared < 0.1:
        return 0.1
    categories = _categories(product.product_category) & _categories(goal.product_category)
    return 1.0 if product.query == goal.query or len(categories) >= 2 or shared > 0.2 else 0.5


def common_nouns(name: str, goal_name: str, nouns: Nouns = embedded_nouns) -> float:
    """Return the share of the nouns of `goal_name` that `name` has too; 0.2 if `goal_name` has no nouns.

    A noun that occurs twice counts twice in the denominator but once in the numerator, as in WebShop.
    """
    goal_nouns = nouns(goal_name)
    return len({*goal_nouns} & {*nouns(name)}) / len(goal_nouns) if goal_nouns else 0.2


def _categories(path: str) -> set[str]:
    return {category.strip() for category in path.split("›")}


def attributes_met(product: Product, attributes: Iterable[str]) -> int:
    """Count the `attributes` that the product meets: similar to one that it has, or literally in one of its texts."""
    return sum(
        any(similar(other, attribute) for other in product.attributes)
        or any(attribute in text for text in product.texts)
        for attribute in attributes
    )


def options_alike(chosen: str, requested: AskedOption) -> bool:
    """Whether a chosen option value meets a requested option.

    Synthetic goals have pairs of name and value, and WebShop compares the chosen value with the text of the pair:
    `x-large` meets `large`, but not `('size', 'large')`.
    """
    return similar(color_of(chosen), color_of(requested))


@lru_cache(maxsize=1 << 16)
def color_of(value: AskedOption) -> str:
    """Return the color that an option value contains or a pair has as an element; otherwise the value, or the pair as
    text, since WebShop's matching converts it.
    """
    return next((color for color in COLORS if color in value), str(value))


@lru_cache(maxsize=1 << 16)
def similar(first: str, second: str) -> bool:
    """Whether thefuzz rates the texts as similar: it drops only U+0080 to U+00FF, and rounds to whole percents."""
    texts = (text.translate(_DROPPED) for text in (first, second))
    return round(fuzz.token_set_ratio(*texts, processor=default_process)) > _ALIKE
