"""WebShop's reward for a purchase (paper section 3, `web_agent_site/engine/goal.py`), as a pure function.

    reward = type * (attributes met + options met + price met) / (attributes asked + options asked + 1)

Exact but for the nouns in the type term (see `nouns`). Texts are compared by thefuzz's `token_set_ratio`, here by the
library under it.
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
"""Percent of similarity that a match must exceed."""
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
    asked: int
    """Attributes and options of the goal."""

    @property
    def reward(self) -> float:
        """Within 0 and 1; exactly 1.0 where everything asked for is met."""
        return self.type_factor * (self.attributes + self.options + self.price) / (self.asked + 1)


def score_purchase(product: Product, options: Mapping[str, str], goal: Goal, nouns: Nouns = embedded_nouns) -> Score:
    """`options` are the chosen values by option name."""
    return Score(
        type_factor=type_factor(product, goal, nouns),
        attributes=attributes_met(product, goal.attributes),
        options=sum(any(options_alike(chosen, asked) for chosen in options.values()) for asked in goal.options),
        price=product.price <= goal.price_upper,
        asked=len(goal.attributes) + len(goal.options),
    )


def type_factor(product: Product, goal: Goal, nouns: Nouns = embedded_nouns) -> float:
    """1.0 for a product of the goal's type: of the same query, two common categories, or over a fifth common nouns.

    0.5 otherwise; but 0.1 below a tenth of the goal's nouns in common, and 0.0 for none.
    """
    shared = common_nouns(product.name, goal.name, nouns)
    if shared == 0:
        return 0.0
    if shared < 0.1:
        return 0.1
    categories = _categories(product.product_category) & _categories(goal.product_category)
    return 1.0 if product.query == goal.query or len(categories) >= 2 or shared > 0.2 else 0.5


def common_nouns(bought: str, wanted: str, nouns: Nouns = embedded_nouns) -> float:
    """The share of the nouns in `wanted`, each counted as often as it comes, that are in `bought`; 0.2 without any.

    A noun that comes twice counts twice among those wanted but once among those found, as in WebShop.
    """
    asked = nouns(wanted)
    return len({*asked} & {*nouns(bought)}) / len(asked) if asked else 0.2


def _categories(path: str) -> set[str]:
    return {part.strip() for part in path.split("›")}


def attributes_met(product: Product, attributes: Iterable[str]) -> int:
    """How many of `attributes` the product has: similar to one of its own, or literally in one of its texts."""
    return sum(
        any(similar(own, asked) for own in product.attributes) or any(asked in text for text in product.texts)
        for asked in attributes
    )


def options_alike(chosen: str, asked: AskedOption) -> bool:
    """Whether a chosen option value meets an asked one.

    Generated goals ask for a name with a value, and WebShop compares the chosen value with the text of that pair:
    `x-large` meets `large`, but not `('size', 'large')`.
    """
    return similar(color_of(chosen), color_of(asked))


@lru_cache(maxsize=1 << 16)
def color_of(value: AskedOption) -> str:
    """The color that stands for an option value that contains it, or for a pair of which it is one; else the value, or
    the text of the pair, as WebShop's matching makes it of what is no text.
    """
    return next((color for color in COLORS if color in value), str(value))


@lru_cache(maxsize=1 << 16)
def similar(first: str, second: str) -> bool:
    """Whether thefuzz finds the texts similar: it drops U+0080 to U+00FF alone, and rounds to whole percents."""
    texts = (text.translate(_DROPPED) for text in (first, second))
    return round(fuzz.token_set_ratio(*texts, processor=default_process)) > _ALIKE
