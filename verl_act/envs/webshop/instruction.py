"""Parse an instruction: its content words and its price limit."""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST_SEARCH = 1000
"""In characters, for suggested searches; an agent's searches may be longer."""

_LIMIT = re.compile(r",? and price lower than (\d+(?:\.\d+)?) dollars\s*$")
WORD = re.compile(r"\w+(?:[.'’-]\w+)*")
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
"""Words without content: words of asking, and names of options (but not their values)."""


def price_limit(instruction: str) -> float | None:
    """Return the limit in US dollars that WebShop appended to the instruction, if any."""
    match = _LIMIT.search(instruction)
    return float(match[1]) if match else None


def without_limit(instruction: str) -> str:
    """Return the instruction without the price limit that WebShop appended."""
    return _LIMIT.sub("", instruction)


@lru_cache(maxsize=4096)
def content_words(instruction: str) -> tuple[str, ...]:
    """Return the content words of the instruction, in lower case and in order, each once."""
    words = WORD.findall(without_limit(instruction).lower())
    return tuple(dict.fromkeys(word for word in words if word not in _ASKING))


def likely_search(instruction: str) -> str:
    """Return the search for all content words. Never empty, never longer than `LONGEST_SEARCH`."""
    words = content_words(instruction) or tuple(WORD.findall(instruction.lower())) or ("products",)
    text = words[0][:LONGEST_SEARCH]
    for word in words[1:]:
        if len(text) + 1 + len(word) > LONGEST_SEARCH:
            break
        text = f"{text} {word}"
    return text
