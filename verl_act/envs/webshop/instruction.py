"""An instruction read for what it asks: the words that matter, and the price limit."""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST_SEARCH = 1000
"""Characters of the searches that are suggested; an agent's own may be longer."""

_LIMIT = re.compile(r",? and price lower than (\d+(?:\.\d+)?) dollars\s*$")
_WORD = re.compile(r"\w+(?:[.'’-]\w+)*")
_ASKING_WORDS = """
    i i'm i’m im i'd i’d id i've am is are be been was it's its it that which this these those there who what a an
    the some any of for from to with without in on by at as and or but also so if my me mine you your we our us it one
    can could may should would will shall must do does did have has had having get gets getting give want wants wanted
    wanting need needs needed needing like liking love look looking looks search searching find finding found show buy
    buying purchase purchasing order shop shopping help please prefer preferably come comes coming made make makes
    interested something suitable product products item items kind type under lower less than about around dollars price
    priced color colored size sized flavor flavored scent scented style option
"""
_ASKING = frozenset(_ASKING_WORDS.split())
"""Words that say only that something is asked for; an option's name is left out, its value is not."""


def price_limit(instruction: str) -> float | None:
    """The limit in US dollars that WebShop wrote at the end of the instruction, if any."""
    found = _LIMIT.search(instruction)
    return float(found[1]) if found else None


def without_limit(instruction: str) -> str:
    """The instruction as it was before WebShop wrote a price limit at its end."""
    return _LIMIT.sub("", instruction)


@lru_cache(maxsize=4096)
def asked_words(instruction: str) -> tuple[str, ...]:
    """The words of the instruction that say what is asked for, in lower case and in order, each once."""
    words = _WORD.findall(without_limit(instruction).lower())
    return tuple(dict.fromkeys(word for word in words if word not in _ASKING))


def likely_search(instruction: str) -> str:
    """The search that suggests itself: all words that matter. Never empty, never longer than `LONGEST_SEARCH`."""
    words = asked_words(instruction) or tuple(_WORD.findall(instruction.lower())) or ("products",)
    text = words[0][:LONGEST_SEARCH]
    for word in words[1:]:
        if len(text) + 1 + len(word) > LONGEST_SEARCH:
            break
        text = f"{text} {word}"
    return text
