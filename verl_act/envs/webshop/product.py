"""A product: what WebShop's product file says of it, in the form that pages, search and reward need."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from verl_act.envs.webshop.actions import can_choose

_NO_PRICE = 100.0
"""US dollars where the file gives no price."""
_NO_ATTRIBUTES = ("DUMMY_ATTR",)
"""What WebShop gives a product that its attribute file does not know."""
_LONGEST_ASIN = 10


@dataclass(frozen=True)
class Product:
    """One product. `price` is in US dollars; `options` are names with their values, both in lower case."""

    asin: str
    name: str
    category: str
    query: str
    product_category: str
    description: str
    bullets: tuple[str, ...]
    price: float
    price_tag: str
    options: tuple[tuple[str, tuple[str, ...]], ...]
    attributes: tuple[str, ...]

    def to_json(self) -> bytes:
        """A compact record, for `from_json`."""
        values = [getattr(self, name) for name in self.__dataclass_fields__]
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, record: bytes) -> Product:
        values = dict(zip(cls.__dataclass_fields__, json.loads(record), strict=True))
        values["options"] = tuple((name, tuple(listed)) for name, listed in values["options"])
        return cls(**values | {name: tuple(values[name]) for name in ("bullets", "attributes")})

    @cached_property
    def texts(self) -> tuple[str, str, str]:
        """Title, bullet points and description in lower case: where the reward looks for a goal's attributes."""
        return self.name.lower(), " ".join(self.bullets).lower(), self.description.lower()

    @cached_property
    def option_of(self) -> dict[str, str]:
        """Option value -> the option it belongs to; of two options with one value the later one, as in WebShop.

        Values that no click chooses, in WebShop neither, are left out: empty ones, those with an opening bracket or a
        line break, and names of buttons.
        """
        return {value: name for name, values in self.options for value in values if can_choose(value)}

    def indexed_text(self) -> str:
        """What WebShop's search index holds of a product."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options)
        return " ".join((self.name, self.description, self.bullets[0] if self.bullets else "", options)).lower()


def is_listed(record: Any) -> bool:
    """Whether WebShop takes the entry: some of the official ones have no usable id.

    Raises `ValueError` where it is no product, or has no id at all.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{_shown(record)} is not a product; it must be an object with 'asin', 'name' and so on")
    asin = _text(record, "asin")
    return asin != "nan" and len(asin) <= _LONGEST_ASIN


def product_from(record: Mapping[str, Any], attributes: Sequence[str] | None) -> Product:
    """The product of an entry of `items_shuffle.json`; `attributes` come from `items_ins_v2.json`.

    Where the entry gives a range of prices, WebShop draws one at every start; here it is drawn by the product's id,
    once and for all. Raises `ValueError` naming the field where one is missing or of another form.
    """
    asin = _text(record, "asin")
    prices = _prices(record.get("pricing"))
    price = prices[0] if len(prices) == 1 else random.Random(f"price of {asin}").uniform(*prices)
    return Product(
        asin=asin,
        name=_text(record, "name"),
        category=_text(record, "category"),
        query=_text(record, "query").lower().strip(),
        product_category=_text(record, "product_category"),
        description=_text(record, "full_description", optional=True),
        bullets=_bullets(record.get("small_description")),
        price=price,
        price_tag=" to ".join(f"${shown}" for shown in prices),
        options=_options(record.get("customization_options")),
        attributes=tuple(attributes or _NO_ATTRIBUTES),
    )


def _text(record: Mapping[str, Any], field: str, *, optional: bool = False) -> str:
    value = record.get(field)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {_shown(value)}; it must be a text")
    return valid_text(value)


def valid_text(text: str) -> str:
    """`text` with question marks for halves of characters, which JSON can hold but no other file of ours."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _prices(pricing: Any) -> list[float]:
    """One price or two, from `$34.00`, `$10.99$25.00`, or nothing."""
    if not pricing:
        return [_NO_PRICE]
    if isinstance(pricing, str):
        numbers = [re.sub(r"[^\d.]", "", part) for part in pricing.split("$")[1:3]]
        if numbers and all(re.fullmatch(r"\d+\.?\d*|\.\d+", number) for number in numbers):
            return [float(number) for number in numbers]
    raise ValueError(f"field 'pricing' is {_shown(pricing)}; it must be like '$34.00', '$10.99$25.00' or empty")


def _bullets(value: Any) -> tuple[str, ...]:
    if value is None or isinstance(value, str):
        return (valid_text(value or ""),)
    if isinstance(value, list) and all(isinstance(bullet, str) for bullet in value):
        return tuple(map(valid_text, value))
    raise ValueError(f"field 'small_description' is {_shown(value)}; it must be a list of texts")


def _options(value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Of names that differ in case alone, the later one's values stand in the place of the first, as in WebShop."""
    if not value:
        return ()
    try:
        options = {
            valid_text(name.lower()): tuple(_option_value(content["value"]) for content in contents)
            for name, contents in value.items()
            if contents is not None
        }
        return tuple(options.items())
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"field 'customization_options' is {_shown(value)}; it must be like "
            '{"color": [{"value": "red"}]}, with null for an option without values'
        ) from error


def _option_value(text: str) -> str:
    return valid_text(text.strip().replace("/", " | ").lower())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
