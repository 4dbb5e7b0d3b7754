"""A product of WebShop's product file, in the form that pages, search and reward need."""

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
"""US dollars, if the file has no price."""
_NO_ATTRIBUTES = ("DUMMY_ATTR",)
"""WebShop's attributes of a product that its attribute file lacks."""
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
        """Encode as a compact record, for `from_json`."""
        values = [getattr(self, name) for name in self.__dataclass_fields__]
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, record: bytes) -> Product:
        values = dict(zip(cls.__dataclass_fields__, json.loads(record), strict=True))
        values["options"] = tuple((name, tuple(listed)) for name, listed in values["options"])
        return cls(**values | {name: tuple(values[name]) for name in ("bullets", "attributes")})

    @cached_property
    def texts(self) -> tuple[str, str, str]:
        """Title, bullet points and description in lower case; the reward searches them for a goal's attributes."""
        return self.name.lower(), " ".join(self.bullets).lower(), self.description.lower()

    @cached_property
    def option_of(self) -> dict[str, str]:
        """Maps an option value to its option; if two options share a value, to the later one, as in WebShop.

        Values that no click can choose, as in WebShop, are left out: empty ones, those with an opening bracket or a
        line break, and names of buttons.
        """
        return {value: name for name, values in self.options for value in values if can_choose(value)}

    def indexed_text(self) -> str:
        """Return the text of the product in WebShop's search index."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options)
        return " ".join((self.name, self.description, self.bullets[0] if self.bullets else "", options)).lower()


def is_listed(record: Any) -> bool:
    """Whether WebShop uses the entry: some of the official ones have no usable id.

    Raises `ValueError` if it is not a product or has no id.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{record!r:.80} is not a product; it must be an object with 'asin', 'name' and so on")
    asin = _text(record, "asin")
    return asin != "nan" and len(asin) <= _LONGEST_ASIN


def product_from(record: Mapping[str, Any], attributes: Sequence[str] | None) -> Product:
    """Make a product from an entry of `items_shuffle.json`; `attributes` come from `items_ins_v2.json`.

    For a price range, WebShop samples a price at every start; here the product's id is the seed, so the price is fixed.
    Raises `ValueError`, naming the field, if one is missing or invalid.
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
        price_tag=" to ".join(f"${price}" for price in prices),
        options=_options(record.get("customization_options")),
        attributes=tuple(attributes or _NO_ATTRIBUTES),
    )


def _text(record: Mapping[str, Any], field: str, *, optional: bool = False) -> str:
    value = record.get(field)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {value!r:.80}; it must be a string")
    return valid_text(value)


def valid_text(text: str) -> str:
    """Replace lone surrogates, which JSON can hold but UTF-8 files cannot, by question marks."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _prices(pricing: Any) -> list[float]:
    """Parse one or two prices: `$34.00`, `$10.99$25.00`, or nothing."""
    if not pricing:
        return [_NO_PRICE]
    if isinstance(pricing, str):
        numbers = [re.sub(r"[^\d.]", "", text) for text in pricing.split("$")[1:3]]
        if numbers and all(re.fullmatch(r"\d+\.?\d*|\.\d+", digits) for digits in numbers):
            return [float(digits) for digits in numbers]
    raise ValueError(f"field 'pricing' is {pricing!r:.80}; it must be like '$34.00', '$10.99$25.00' or empty")


def _bullets(value: Any) -> tuple[str, ...]:
    if value is None or isinstance(value, str):
        return (valid_text(value or ""),)
    if isinstance(value, list) and all(isinstance(bullet, str) for bullet in value):
        return tuple(map(valid_text, value))
    raise ValueError(f"field 'small_description' is {value!r:.80}; it must be a list of strings")


def _options(value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Parse the options. If names differ only in case, the values of the last replace the others, as in WebShop."""
    if not value:
        return ()
    try:
        options = {
            valid_text(name.lower()): tuple(
                valid_text(content["value"].strip().replace("/", " | ").lower()) for content in contents
            )
            for name, contents in value.items()
            if contents is not None
        }
        return tuple(options.items())
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"field 'customization_options' is {value!r:.80}; it must be like "
            '{"color": [{"value": "red"}]}, with null for an option without values'
        ) from error
