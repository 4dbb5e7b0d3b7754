"""Parses a model's reply into an action or a choice, for rewards, rollout and evaluation alike.

A reply reasons and then gives one `<action>…</action>`. An action must match exactly after `normalise`, since an
environment accepts nothing else. A choice is parsed more leniently, since only the candidate counts: see
`parse_choice`. A malformed reply is data, not an error: the result holds a `Malformed` reason. If the prompt itself
opened `<think>`, callers prepend that to the reply (`prompts.reply_decoder`). Every function takes linear
time, whatever a policy in training produces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

THINK, END_OF_THINK = "<think>", "</think>"
THOUGHT_MARKERS: dict[str, dict[str, str]] = {
    "gpt-oss": {
        "<|channel|>analysis<|message|>": THINK,
        "<|channel|>commentary<|message|>": THINK,
        "<|channel|>final<|message|>": "",
        "<|end|><|start|>assistant": END_OF_THINK,
    },
    "Gemma 4": {"<|channel>thought": THINK, "<|channel>": THINK, "<channel|>": END_OF_THINK},
    "Magistral": {"[THINK]": THINK, "[/THINK]": END_OF_THINK},
    "Command A Reasoning": {"<|START_THINKING|>": THINK, "<|END_THINKING|>": END_OF_THINK},
    "Kimi K3": {
        "<|open|>think<|sep|>": THINK,
        "<|close|>think<|sep|>": END_OF_THINK,
        "<|open|>response<|sep|>": "",
        "<|close|>response<|sep|>": "",
    },
    "Seed-OSS": {"<seed:think>": THINK, "</seed:think>": END_OF_THINK},
}
"""Model family -> what it writes around thoughts and answers, with control tokens -> the tag that replaces it.

Families that write the two tags themselves (Qwen3, DeepSeek-R1, GLM, Olmo) need no entry. `prompts.reply_decoder` uses
the table."""
_ACTION_TAG = re.compile(r"</?action>")
_ACTION_OPEN = "<action>"
_WORD = re.compile(r"\w+")
_LONGEST_WORD = 256
_THOUGHT_LETTERS = 10
"""Fewer letters and digits between the think tags do not count as a thought."""

_LABEL = (
    r"(?<!\w)(?:action|option|choice|candidate|answer)s?(?:[-_]|[ :#*]{0,4})[(\[]?"
    r"(?P<labelled>[0-9]{1,3}|(?<![a-z])[a-z])(?!\w|\.[0-9])"
)
_BARE_LABEL = r"(?<![\w.+-])(?P<bare>[0-9]{1,3}|[a-z])(?!\w|%|\.[0-9])"
_AROUND_TEXT = " .,:;!?\"'`*“”‘’„«»"
_PUNCTUATION = " .,:;!?()[]{}\"'`*#/\\&|<>$•-–—“”‘’„«»"
_CONNECTIVE = re.compile(r"\b(?:or|and|either|both|versus|vs)\b")


class Malformed(StrEnum):
    """Why a reply has no answer."""

    NO_TAG = "no_tag"
    """No action tag at all."""
    UNCLOSED = "unclosed"
    """Action tags that do not pair up (unclosed, nested, or closed without being opened)."""
    SEVERAL = "several"
    """Two different answers."""
    EMPTY = "empty"
    """Nothing between the tags."""
    UNCLOSED_THINK = "unclosed_think"
    """The reasoning never ends, so anything that looks like an answer may be part of it."""


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """Either the action's text, stripped of white space, or the reason why there is none."""

    action: str | None
    malformed: Malformed | None = None


@dataclass(frozen=True, slots=True)
class ParsedChoice:
    """Which candidate a reply chose.

    `index` is None if the text names no candidate; `text` and `index` are both None if the reply is malformed.
    """

    text: str | None
    index: int | None
    malformed: Malformed | None = None


def normalise(text: str) -> str:
    """The form in which two actions are compared: Unicode NFKC, case folded, white space collapsed.

    Idempotent. Words of more than 256 characters keep their Unicode form: NFKC takes quadratic time on long runs of
    combining marks, and no action has such a word.
    """
    if text.isascii():  # NFKC leaves ASCII as it is
        return " ".join(text.casefold().split())
    # Case folding can undo NFKC, and NFKC can produce white space, so each is applied twice.
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

    The text is compared first, so that a candidate with the text "2" can be chosen. Otherwise an answer that names one
    candidate and nothing else chooses it: `Action 1: go to shelf 1`, `1.`, `(A)`, quotes, bold, a final full stop. An
    answer that names two candidates, such as `1 or 2` or one's label with the other's text, is malformed. An answer
    that names none, such as a label with another text, is well-formed, with `index` None.
    """
    answers = _answers(reply)
    if isinstance(answers, Malformed):
        return ParsedChoice(None, None, answers)
    names = [normalise(candidate) for candidate in candidates]
    chosen = [_named(answer, names) for answer in answers]
    named = set().union(*chosen)
    if len(named) > 1 or (len(answers) > 1 and not all(chosen)):
        return ParsedChoice(None, None, Malformed.SEVERAL)
    return ParsedChoice(next(iter(answers.values())), next(iter(named), None))


def has_thought(reply: str) -> bool:
    """Whether `reply` reasons inside `<think>…</think>` before its answer; a few letters do not
    count, and neither does a thought that never ends.

    If the prompt opened `<think>`, the caller must prepend it to the reply, as in `parse_action`.
    """
    thought, end, _ = reply.rpartition(END_OF_THINK)
    thought = _ACTION_TAG.sub(" ", thought.replace(THINK, " ").replace(END_OF_THINK, " "))
    return bool(end) and sum(len(word) for word in _WORD.findall(thought)) >= _THOUGHT_LETTERS


def match_action(text: str, actions: Iterable[str]) -> str | None:
    """The member of `actions` that equals `text` after normalisation, as spelled there, or None."""
    actions = list(actions)
    if text in actions:  # the usual case, without normalising the whole list
        return text
    normalised = normalise(text)
    return next((action for action in actions if normalise(action) == normalised), None)


def verb(action: str) -> str:
    """The word an action begins with, case folded: "go" of "go to desk 1", "search" of "search[red shoes]"."""
    match = _WORD.search(action)
    return match.group().casefold() if match else ""


def _answers(reply: str) -> dict[str, str] | Malformed:
    """The different answers after the reasoning, normalised -> as written; never empty."""
    reply = reply[reply.rfind(END_OF_THINK) + len(END_OF_THINK) :] if END_OF_THINK in reply else reply
    if THINK in reply:
        return Malformed.UNCLOSED_THINK
    answers: dict[str, str] = {}
    start: int | None = None
    for tag in _ACTION_TAG.finditer(reply):
        opens = tag.group() == _ACTION_OPEN
        if opens == (start is not None):
            return Malformed.UNCLOSED
        if opens:
            start = tag.end()
            continue
        text = reply[start : tag.start()].strip()
        answers.setdefault(normalise(text), text)
        start = None
    if start is not None:
        return Malformed.UNCLOSED
    if not answers:
        return Malformed.NO_TAG
    if "" in answers:
        return Malformed.EMPTY if len(answers) == 1 else Malformed.SEVERAL
    return answers


def _named(answer: str, names: Sequence[str]) -> set[int]:
    """The candidates that a normalised answer names: one if it chooses, none if it says something else."""
    if answer in names:
        return {names.index(answer)}
    if (index := _labelled(answer.removeprefix("action "), len(names))) is not None:
        return {index}
    named, bare = set[int](), set[int]()
    end, previous, gaps = 0, None, list[str]()
    texts = _texts(answer, names)
    for match in _pattern(texts).finditer(answer):
        gap = answer[end : match.start()]
        label = match["labelled"] or match["bare"]
        index = texts[match.group()] if label is None else _labelled(label, len(names))
        if index is None:  # not a label of any candidate, so an ordinary word
            continue
        if label is None and gap == " " and previous not in (None, index):
            gap = "article or number"  # "a mug" and "2 mugs" do not mean candidates A and 2
        (named if match["bare"] is None else bare).add(index)
        end, previous = match.end(), index if match["bare"] else None
        gaps.append(gap)
    rest = _CONNECTIVE.sub(" ", " ".join([*gaps, answer[end:]]))
    if rest.strip(_PUNCTUATION):  # a number or a letter among other words is not a label
        return named if len(named) > 1 else set()
    return named | bare


def _labelled(label: str, candidates: int) -> int | None:
    """The candidate with this label, a number from 1 or a letter from a, or None."""
    if label.isascii() and label.isdigit() and len(label) < 4:
        index = int(label) - 1 if str(int(label)) == label else -1
    elif len(label) == 1 and "a" <= label <= "z":
        index = ord(label) - ord("a")
    else:
        return None
    return index if 0 <= index < candidates else None


def _texts(answer: str, names: Sequence[str]) -> dict[str, int]:
    """Texts of candidates in `answer`, with or without surrounding punctuation -> candidate index."""
    bare = [name.strip(_AROUND_TEXT) for name in names]
    texts = {text: index for index, text in enumerate(bare) if bare.count(text) == 1}
    texts |= {name: index for index, name in enumerate(names)}
    return {text: index for text, index in texts.items() if text and text in answer}


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches a text or a label. Longer texts come first, so that "go to desk 10" is not read as "go to desk 1"."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join([*(rf"(?<!\w){re.escape(text)}(?!\w)" for text in longest_first), _LABEL, _BARE_LABEL]))
