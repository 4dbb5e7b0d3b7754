"""Convert text to index terms as Lucene 8 does for WebShop's search: words of its `StandardTokenizer` (Unicode word
boundaries, UAX 29) in lower case, without possessives and stop words, as Porter stems.

Characters newer than Unicode 9, which Lucene 8 does not know, may count as letters here.
"""

from __future__ import annotations

import re
from functools import lru_cache

import regex

from verl_act.envs.webshop.stemmer import stem

_STOP_WORDS = """
    a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to
    was will with
"""
_STOP = frozenset(_STOP_WORDS.split())
"""Lucene's `EnglishAnalyzer.ENGLISH_STOP_WORDS_SET`."""

_LONGEST_WORD = 255
"""In characters; longer words are split."""

# Part of a word: a colon, full stop or apostrophe between letters, and one of .,;' between digits.
_ASCII_WORD = re.compile(
    r"_*[A-Za-z0-9]\w*(?:(?:(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=[0-9])[.,;'](?=[0-9]))\w+)*", re.ASCII
)


def _unicode_word() -> regex.Pattern[str]:
    """Compile the pattern of `StandardTokenizer`'s tokens. Its Unicode data date from 2016 and its emoji from 2018; the
    ranges list differences from current data.
    """
    joined = r"[[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]--\p{Emoji_Modifier}]*"  # belong to the preceding character
    no_letters = r"\u00B8\u02C2-\u02C5\u02D2-\u02D7\u02DE\u02DF\u02E5-\u02EB\u02ED\u02EF-\u02FF"
    letter = rf"[[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]--[{no_letters}]]{joined}"
    digit = rf"[\p{{WB=Numeric}}\uFF10-\uFF19]{joined}"
    katakana = rf"\p{{WB=Katakana}}{joined}"
    low_lines = rf"(?:\p{{WB=ExtendNumLet}}{joined})"
    in_both = r".\u2018\u2019\u2024\uFE52\uFF07\uFF0E'"
    in_words = rf"[:\u00B7\u0387\u05F4\u2027\uFE13\uFE55\uFF1A{in_both}]{joined}"
    in_numbers = rf"[,;\u037E\u0589\u060C\u060D\u066C\u07F8\u2044\uFE10\uFE14\uFE50\uFE54\uFF0C\uFF1B{in_both}]{joined}"
    word = (
        rf"(?:{digit}(?:(?:{low_lines}*+|{in_numbers}){digit})*+"
        rf"|{letter}(?:(?:{low_lines}*+|{in_words}){letter})*+)++"
    )
    segment = rf"(?:{katakana}(?:{low_lines}*+{katakana})*+|{word})"
    pictures = (
        r"\p{Extended_Pictographic}\u2388\u2600-\u2605\u2607-\u2612\u2616-\u2685\u2690-\u2705\u2708-\u2712\u2765-\u2767"
        r"\U0001F000-\U0001F0FF\U0001F10D-\U0001F10F\U0001F12F\U0001F16C-\U0001F171\U0001F1AD-\U0001F1E5"
        r"\U0001F260-\U0001F265\U0001F300-\U0001F3FA\U0001F400-\U0001F64F\U0001F680-\U0001F6FF\U0001F774-\U0001F77F"
        r"\U0001F7D5-\U0001F7FF"
    )
    toned = r"\p{Emoji_Modifier_Base}?\p{Emoji_Modifier}"
    picture = rf"\u200D*(?:{toned}|[{pictures}]{joined})"
    alternatives = (
        rf"{picture}(?:\u200D{picture})*+{joined}",
        r"[0-9#*]\uFE0F?\u20E3",
        r"\p{Regional_Indicator}{2}",
        rf"{low_lines}*+{segment}(?:{low_lines}++{segment})*+{low_lines}*+",
        rf"(?:\p{{LB=SA}}{joined})++",  # Thai and similar scripts, whose words only dictionaries can split
        rf"[\p{{Script=Han}}\p{{Script=Hiragana}}]{joined}",
    )
    return regex.compile("|".join(alternatives), regex.VERSION1)


_UNICODE_WORD = _unicode_word()
_POSSESSIVES = ("'s", "’s", "＇s")


def index_terms(text: str) -> list[str]:
    """Return the terms of `text` in order, with repeats."""
    return [term for word in _words(text.lower()) if (term := _term(word)) is not None]


@lru_cache(maxsize=1 << 18)
def _term(word: str) -> str | None:
    """Return the term of a word; None for a stop word."""
    plain = word[:-2] if word.endswith(_POSSESSIVES) else word
    return None if plain in _STOP else stem(plain)


def _words(text: str) -> list[str]:
    words = (_ASCII_WORD if text.isascii() else _UNICODE_WORD).findall(text)
    if len(text) <= _LONGEST_WORD:
        return words
    return [word[start : start + _LONGEST_WORD] for word in words for start in range(0, len(word), _LONGEST_WORD)]
