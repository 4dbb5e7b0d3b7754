"""The nouns of a product name, which decide whether a purchase is of the right type.

WebShop tags the name with spaCy (whose models are not on PyPI) and keeps the words tagged NOUN or PROPN. The embedded
tagger is the only deviation from WebShop's reward: it takes every word of letters as a noun, unless it is a function
word, a number, a measure, or one of a few hundred adjectives, verbs and adverbs that are common in product names. So it
misses listed words that spaCy tags as names, often because they are capitalised, and takes rarer adjectives and verbs
as nouns. That changes the type factor of some purchases: use spaCy's tagging to compare with published results. Buying
the product that the goal was written for gives the same reward with either tagger.

spaCy comes with the extra `webshop-spacy`: pass the name of its model, `en_core_web_sm` or `en_core_web_lg`. WebShop's
code has loaded both, in different versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from verl_act.errors import ConfigError

EMBEDDED = "embedded"

Nouns = Callable[[str], tuple[str, ...]]
"""Maps a name to its nouns in lower case, with repeats."""

# spaCy splits words at slashes and at hyphens between letters, and keeps abbreviations with dots whole.
_TOKEN = re.compile(r"[^\W\d_](?:\.[^\W\d_])+\.?|[^\W_]+(?:(?:['’]|(?<=\d)-|-(?=\d))[^\W_]+)*")
_POSSESSIVE = re.compile("['’]s$")
_MEASURE = re.compile(r"\d.*|x+|[ivx]+", re.IGNORECASE)
_FUNCTION_WORDS = """
    a about above across after all also an and any are as at be been before behind below beneath beside between both
    but by can could do does down during each either else every few for from had has have he her here his how if in
    inside into is it its just like may me more most much my near neither no nor not of off on once one only onto or
    other our out outside over own per same she should since so some such than that the their them then there these
    they this those three through to too two under until up upon us very via was we were what when where which while
    who whose why will with within without would you your four five six seven eight nine ten first second third
"""
_ADJECTIVES = """
    adjustable advanced assorted attached automatic available best better big black blue bright brown built
    certified cheap classic clean clear coated colored comfortable comfy compatible complete convenient cool cordless
    cotton-free cruelty cute dark decorative deep digital dry durable easy elastic electric elegant extra fashionable
    fast fine flat flexible foldable folding free fresh full genuine gold good great green grey gray handmade hard
    healthy heavy high hot important included insulated large latest lightweight listed little long loose low
    luxury made magnetic metallic mini modern multi multifunctional natural new non old optical organic original
    oversized padded perfect personalized pink plain plus portable powerful premium pretty printed professional pure
    purple quick real rechargeable red removable replaceable resistant retro reusable round safe scented sexy short
    shockproof silky simple sleeveless slim small smart smooth soft solid special square stretchy strong stylish super
    sweet tall thick thin tiny traditional transparent ultra-thin unique universal upgraded used useful versatile
    vintage warm washable waterproof wet white wide wireless yellow
"""
"""Adjectives, participles and adverbs of product names."""
_OTHER = frozenset((_FUNCTION_WORDS + _ADJECTIVES).split())


def embedded_nouns(name: str) -> tuple[str, ...]:
    """Return the nouns by the embedded word list. A possessive counts as its noun, as with spaCy: `men` for `men's`."""
    words = (_POSSESSIVE.sub("", token.lower()) for token in _TOKEN.findall(name))
    return tuple(word for word in words if word not in _OTHER and not _MEASURE.fullmatch(word))


@lru_cache(maxsize=2)
def noun_tagger(model: str = EMBEDDED) -> Nouns:
    """Return the embedded tagger, or that of an installed spaCy model (its name or folder).

    Raises `ConfigError` if spaCy or the model is not installed.
    """
    if model == EMBEDDED:
        return lru_cache(maxsize=65536)(embedded_nouns)
    try:
        import spacy
    except ImportError as error:
        raise ConfigError(
            f"nouns is {model!r}, a model of spaCy, which cannot be imported: {error}. Install both (`pip install "
            f"'verl-act[webshop-spacy]'`, `python -m spacy download {model}`), or leave nouns at {EMBEDDED!r}."
        ) from error
    try:
        tag = spacy.load(model, exclude=["ner", "lemmatizer"])
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(
            f"nouns is {model!r}, but spaCy cannot load that model: {error} Install it (`python -m spacy download "
            f"{model}`), or leave nouns at {EMBEDDED!r}."
        ) from error

    def nouns(name: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in tag(name) if token.pos_ in ("NOUN", "PROPN"))

    return lru_cache(maxsize=65536)(nouns)
