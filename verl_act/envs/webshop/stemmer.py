"""Porter's stemmer as in Lucene (`PorterStemFilter`): Porter's program with his later changes.

It differs from Snowball's `porter`, which PyStemmer implements, in four rules:

* words of one or two letters are unchanged: `as`, not `a`;
* step 2 turns `bli` into `ble`, not only `abli` into `able`: `possibl`, not `possibli`;
* step 2 turns `logi` into `log`: `technolog`, not `technologi`;
* step 1b undoubles any consonant but l, s and z, not only b, d, f, g, m, n, p, r and t: `trek`, not `trekk`.
"""

from __future__ import annotations

import re

_Rules = tuple[tuple[str, str], ...]
"""Suffixes and their replacements; the first matching suffix applies."""

_STEP_2: _Rules = (
    *(("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble")),
    *(("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate")),
    *(("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al")),
    *(("iviti", "ive"), ("biliti", "ble"), ("logi", "log")),
)
_STEP_3: _Rules = (
    *(("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")),
)
_STEP_4 = re.compile("(?:al|ance|ence|er|ic|able|ible|ant|ement|ment|ent|(?<=[st])ion|ou|ism|ate|iti|ous|ive|ize)$")
_VOWELS = str.maketrans("aeiou", "VVVVV")
_CONSONANT = re.compile("[^Vy]")
_DOUBLE = re.compile(r"([^aeioulsz])\1$")


def stem(word: str) -> str:
    """Return the stem of `word`, which must be in lower case."""
    if len(word) <= 2:
        return word
    word = _ed_and_ing(_plural(word))
    if word.endswith("y") and "V" in _form(word[:-1]):
        word = f"{word[:-1]}i"
    word = _replaced(word, _STEP_2)
    word = _replaced(word, _STEP_3)
    if (suffix := _STEP_4.search(word)) and _measure(word[: suffix.start()]) > 1:
        word = word[: suffix.start()]
    return _final_e_and_l(word)


def _plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _ed_and_ing(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    shorter = word.removesuffix("ed") if word.endswith("ed") else word.removesuffix("ing")
    if shorter == word or "V" not in _form(shorter):
        return word
    if shorter.endswith(("at", "bl", "iz")):
        return f"{shorter}e"
    form = _form(shorter)
    if _DOUBLE.search(shorter) and form[-1] == "C":
        return shorter[:-1]
    return f"{shorter}e" if _measure(shorter) == 1 and _is_short(shorter) else shorter


def _replaced(word: str, rules: _Rules) -> str:
    for suffix, other in rules:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return rest + other if _measure(rest) > 0 else word
    return word


def _final_e_and_l(word: str) -> str:
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _is_short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word


def _form(word: str) -> str:
    """Return `word` with V for each vowel and C for each consonant; y is a vowel after a consonant."""
    form = _CONSONANT.sub("C", word.translate(_VOWELS))
    while (y := form.find("y")) >= 0:
        form = f"{form[:y]}{'V' if form[y - 1 : y] == 'C' else 'C'}{form[y + 1 :]}"
    return form


def _measure(word: str) -> int:
    """Count how often consonants follow vowels: Porter's m."""
    return _form(word).count("VC")


def _is_short(word: str) -> bool:
    """Whether `word` ends in a consonant, a vowel, and a consonant other than w, x and y."""
    return _form(word)[-3:] == "CVC" and word[-1] not in "wxy"
