"""The embedded catalogue: generated products and instructions in the format of WebShop's files.

The official product records are scraped from a shop, have an unclear licence and need a download; this catalogue avoids
all three. It is smaller and cleaner than the official ones, so its results compare agents with each other, but not with
published results. The same arguments give the same records on every machine.
"""

from __future__ import annotations

import math
import random
import re
from typing import Any, NamedTuple

from verl_act.envs.webshop import embedded_words as words
from verl_act.settings.data import CatalogueSettings

_CONSONANTS = "BCDFGHJKLMNPQRSTVWXZ"
_SENTENCE_START = re.compile(r"(?:^|[.?] )\w")


class Records(NamedTuple):
    """The contents of WebShop's three files: `items_shuffle`, `items_ins_v2` and `items_human_ins`."""

    products: list[dict[str, Any]]
    attributes: dict[str, dict[str, Any]]
    human: dict[str, list[dict[str, Any]]]


class _Draft(NamedTuple):
    """A product before it is written out."""

    asin: str
    kind: words.ProductKind
    brand: str
    adjective: str
    audience: str
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]


def embedded_records(settings: CatalogueSettings | None = None) -> Records:
    """Generate the products with their goals. By default, those of the embedded catalogue: 4,000 goals, so the standard
    splits have 500, 1,000 and 2,500.
    """
    settings = settings or CatalogueSettings()
    products, instructions, seed = settings.products, settings.instructions, settings.seed
    records = Records([], {}, {})
    pieces = _asin_pieces(products)
    for index in range(products):
        rng = random.Random(f"{seed}/{index}")
        while (asin := "B0" + "".join(rng.choices(pieces, k=2))) in records.attributes:
            continue
        draft = _draft(words.KINDS[index % len(words.KINDS)], asin, rng)
        records.products.append(_product(draft, rng))
        records.attributes[asin] = _attributes(draft, rng)
        records.human[asin] = [_instruction(draft, rng) for _ in range(instructions)]
    random.Random(f"{seed}/order").shuffle(records.products)
    return records


def _asin_pieces(products: int) -> list[str]:
    """Return the pieces of product ids, such as "K7QX"; they depend only on the size of the catalogue.

    A tokenizer can have each piece as one token, so the embedded model can copy ids of a catalogue that it was not
    trained on. No word looks like a piece. Twice the square root of `products` gives four times the ids needed.
    """
    rng, pieces = random.Random("pieces of product numbers"), dict[str, None]()
    while len(pieces) < max(64, 2 * math.isqrt(products)):
        pieces[rng.choice(_CONSONANTS) + rng.choice("23456789") + "".join(rng.choices(_CONSONANTS, k=2))] = None
    return list(pieces)


def _draft(kind: words.ProductKind, asin: str, rng: random.Random) -> _Draft:
    options = {}
    for name, values in kind.options.items():
        offered = rng.randint(min(2, len(values)), min(8, len(values)))
        options[name] = tuple(values[index] for index in sorted(rng.sample(range(len(values)), offered)))
    return _Draft(
        asin=asin,
        kind=kind,
        brand=rng.choice(words.BRAND_STARTS) + rng.choice(words.BRAND_ENDS),
        adjective=rng.choice(words.ADJECTIVES),
        audience=rng.choice(words.AUDIENCES[kind.category]),
        attributes=tuple(rng.sample(kind.attributes, 4)),
        options=options,
    )


def _product(draft: _Draft, rng: random.Random) -> dict[str, Any]:
    """Put two or three attributes in the title, and each of the others in a bullet point or in the description."""
    kind, in_title = draft.kind, rng.randint(2, 3)
    texts = {
        "brand": draft.brand,
        "noun": kind.noun,
        "adjective": draft.adjective,
        "audience": draft.audience,
        "attributes": ", ".join(draft.attributes[:in_title]),
        **_grammar(kind),
    }
    title = rng.choice(words.TITLES).format(**texts)

    def sentence(templates: tuple[str, ...], attribute: str) -> str:
        text = rng.choice(templates).format(**texts, attribute=attribute, use=rng.choice(kind.uses))
        return _SENTENCE_START.sub(lambda match: match[0].upper(), text)

    hidden = draft.attributes[in_title:]
    bullets = [sentence(words.BULLETS, attribute) for attribute in (draft.attributes[0], *hidden[:1])]
    return {
        "asin": draft.asin,
        "name": " ".join(word if word.isupper() else word[0].upper() + word[1:] for word in title.split()),
        "category": kind.category,
        "query": kind.noun,
        "product_category": f"{kind.path} › {kind.noun.title()}",
        "full_description": sentence(words.DESCRIPTIONS, (hidden or draft.attributes)[-1]),
        "small_description": bullets,
        "pricing": _pricing(kind, rng),
        "customization_options": {
            name: [{"value": value, "image": None} for value in values] for name, values in draft.options.items()
        },
        "images": [f"{draft.asin}.jpg"],
    }


def _grammar(kind: words.ProductKind) -> dict[str, str]:
    return words.PLURAL if kind.noun.endswith("s") and not kind.noun.endswith("ss") else words.SINGULAR


def _pricing(kind: words.ProductKind, rng: random.Random) -> str:
    """Return mostly one price, sometimes two, rarely none, as in the official files."""
    price = rng.randint(kind.prices[0] * 100, kind.prices[1] * 100) / 100
    form = rng.random()
    if form < 0.03:
        return ""
    return f"${price:.2f}" if form < 0.85 else f"${price:.2f}${price * rng.uniform(1.05, 1.4):.2f}"


def _attributes(draft: _Draft, rng: random.Random) -> dict[str, Any]:
    chosen = rng.sample(draft.attributes, 2)
    return {
        "attributes": list(draft.attributes),
        "instruction": f"Find me {', '.join(chosen)} {draft.kind.noun} for {draft.audience}",
        "instruction_attributes": chosen,
    }


def _instruction(draft: _Draft, rng: random.Random) -> dict[str, Any]:
    """Write an instruction for this product that names one or two attributes and any number of its options."""
    attributes = rng.sample(draft.attributes, rng.randint(1, 2))
    names = rng.sample(list(draft.options), rng.randint(0 if rng.random() < 0.2 else 1, len(draft.options)))
    values = {name: rng.choice(draft.options[name]) for name in names}
    options = "".join(rng.choice(words.OPTION_ASKS[name]).format(value=value) for name, value in values.items())
    described, ask, noun = " and ".join(attributes), rng.choice(words.ASKS), draft.kind.noun
    follows = described if ask.index("{attributes}") < ask.index("{noun}") else noun
    uncountable = draft.kind.category == "grocery" or _grammar(draft.kind) is words.PLURAL
    article = "some" if uncountable else "an" if follows[0] in "aeiou" else "a"
    text = ask.format(article=article, attributes=described, noun=noun, options=options, **_grammar(draft.kind))
    return {
        "asin": draft.asin,
        "instruction": text,
        "instruction_attributes": attributes,
        "instruction_options": list(values.values()),
        "options": [f"{name}: {value}" for name, value in values.items()],
        "attributes": list(draft.attributes),
    }
