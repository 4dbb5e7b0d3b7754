"""From a model's reply to an action or a choice: the one parser of rewards, rollout and evaluation.

A reply ends its reasoning with one `<action>…</action>`. Matching is exact after `normalise`; nothing is guessed.
A reply that cannot be read is data, not an error: the answer is then a `Malformed` reason. Where the prompt itself has
opened `<think>`, callers put that before the reply (`prompts.plain_text.reply_prefix`). Every function takes linear
time, whatever a policy under training comes up with.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_ACTION_TAG = re.compile(r"</?action>")
_ACTION_OPEN = "<action>"
_WORD = re.compile(r"\w+")
_LONGEST_WORD = 256


class Malformed(StrEnum):
    """Why a reply holds no answer."""

    NO_TAG = "no_tag"
    """No action tag at all."""
    UNCLOSED = "unclosed"
    """Action tags do not pair up: opened and never closed, nested, or closed and never opened."""
    SEVERAL = "several"
    """Two different answers."""
    EMPTY = "empty"
    """Nothing between the tags."""
    UNCLOSED_THINK = "unclosed_think"
    """The reasoning never ends, so whatever looks like an answer may be part of it."""


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """Either the action's text, as the model wrote it less surrounding white space, or the reason why there is none."""

    action: str | None
    malformed: Malformed | None = None


@dataclass(frozen=True, slots=True)
class ParsedChoice:
    """Which candidate a reply chose.

    `index` is None where the text names no candidate; `text` and `index` are both None where the reply is malformed.
    """

    text: str | None
    index: int | None
    malformed: Malformed | None = None


def normalise(text: str) -> str:
    """The form in which two actions are compared: Unicode NFKC, case folded, white space collapsed.

    Normalising twice changes nothing. Words of more than 256 characters keep their Unicode form: NFKC needs quadratic
    time on a long run of combining marks, and no action holds such a word.
    """
    if text.isascii():  # NFKC leaves ASCII as it is
        return " ".join(text.casefold().split())
    # Case folding can undo NFKC, and NFKC can bring out white space: hence each of them twice.
    return " ".join(" ".join(map(_compatible, text.split())).split())


def _compatible(word: str) -> str:
    if len(word) > _LONGEST_WORD:
        return word.casefold()
    folded = unicodedata.normalize("NFKC", word).casefold()
    return unicodedata.normalize("NFKC", folded)


def parse_action(reply: str) -> ParsedReply:
    """The action that `reply` ends with. The same answer given twice counts once."""
    answers = _answers(reply)
    if isinstance(answers, Malformed):
        return ParsedReply(None, answers)
    if len(answers) > 1:
        return ParsedReply(None, Malformed.SEVERAL)
    return ParsedReply(next(iter(answers.values())))


def parse_choice(reply: str, candidates: Sequence[str]) -> ParsedChoice:
    """Which of `candidates` (in displayed order) `reply` chose: by its text, or by its label `Action 1`, `1` or `A`.

    The text decides first, so that a candidate whose text is "2" can be chosen. An answer that names two candidates is
    malformed; one that names none is well-formed, with `index` None.
    """
    answers = _answers(reply)
    if isinstance(answers, Malformed):
        return ParsedChoice(None, None, answers)
    names = [normalise(candidate) for candidate in candidates]
    chosen = {_candidate(answer, names) for answer in answers}
    if len(answers) > 1 and (len(chosen) > 1 or None in chosen):
        return ParsedChoice(None, None, Malformed.SEVERAL)
    index = chosen.pop()
    if index is None and _names_several(next(iter(answers)), names):
        return ParsedChoice(None, None, Malformed.SEVERAL)
    return ParsedChoice(next(iter(answers.values())), index)


def match_action(text: str, actions: Iterable[str]) -> str | None:
    """The member of `actions` that equals `text` after normalisation, in its own spelling; None where none does."""
    actions = list(actions)
    if text in actions:  # the usual case, without normalising the whole list
        return text
    wanted = normalise(text)
    return next((action for action in actions if normalise(action) == wanted), None)


def verb(action: str) -> str:
    """The word an action begins with, case folded: "go" of "go to desk 1", "search" of "search[red shoes]"."""
    found = _WORD.search(action)
    return found.group().casefold() if found else ""


def _answers(reply: str) -> dict[str, str] | Malformed:
    """The different answers after the reasoning, normalised -> as written; never empty."""
    reply = reply[reply.rfind(_THINK_CLOSE) + len(_THINK_CLOSE) :] if _THINK_CLOSE in reply else reply
    if _THINK_OPEN in reply:
        return Malformed.UNCLOSED_THINK
    found: dict[str, str] = {}
    start: int | None = None
    for tag in _ACTION_TAG.finditer(reply):
        opens = tag.group() == _ACTION_OPEN
        if opens == (start is not None):
            return Malformed.UNCLOSED
        if opens:
            start = tag.end()
            continue
        text = reply[start : tag.start()].strip()
        found.setdefault(normalise(text), text)
        start = None
    if start is not None:
        return Malformed.UNCLOSED
    if not found:
        return Malformed.NO_TAG
    if "" in found:
        return Malformed.EMPTY if len(found) == 1 else Malformed.SEVERAL
    return found


def _candidate(answer: str, names: Sequence[str]) -> int | None:
    """The candidate that a normalised answer names, by text or else by label."""
    if answer in names:
        return names.index(answer)
    label = answer.removeprefix("action ")
    if label.isascii() and label.isdigit() and len(label) < 4:
        number = int(label)
        return number - 1 if str(number) == label and 1 <= number <= len(names) else None
    if len(answer) == 1 and "a" <= answer <= "z":
        position = ord(answer) - ord("a")
        return position if position < len(names) else None
    return None


def _names_several(answer: str, names: Sequence[str]) -> bool:
    """Whether an answer that is no candidate holds the texts, or the `Action n` labels, of two candidates.

    Longer names are looked for first and cut out, so that "go to desk 10" does not also count as "go to desk 1".
    """
    labels = {f"action {number}": number for number in range(1, len(names) + 1)}
    numbers = {**labels, **{name: number for number, name in enumerate(names, 1) if name}}
    seen: set[int] = set()
    for name in sorted(numbers, key=len, reverse=True):
        if name in answer:
            pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
            answer, count = re.subn(pattern, "\0", answer)
            if count:
                seen.add(numbers[name])
    return len(seen) > 1
