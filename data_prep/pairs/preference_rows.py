"""Read one row of preference data, in any common format, as a request with one chosen and some rejected replies.

The request is the whole context of the replies: a system message, earlier turns, the last request. A row with context
that a pair cannot show (such as an image) is unusable; context is never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_act.data_prep.pairs.preference_messages import (
    ASSISTANT,
    SYSTEM,
    USER,
    Message,
    UnusableRow,
    is_empty,
    read_messages,
)
from verl_act.parse import normalise
from verl_act.prompts.plain_text import OWN_TAGS
from verl_act.schema import Turn

GOAL = "Give the user the best reply."
"""The task if the conversation has no system message."""

_PROMPTS = ("prompt", "instruction", "question", "query", "conversations", "messages")
"""Columns that hold the request, with or without earlier turns."""
_SYSTEMS = ("system", "system_prompt", "system_message")
_NOT_SHOWN = ("tools", "functions", "images", "image", "videos", "video", "audios", "audio", "documents", "context")
"""Columns with context that a pair cannot show."""

_SCORES = ("overall_score", "fine-grained_score", "score", "rating")
"""Fields with the score of a reply in UltraFeedback and its derivatives, in order of precedence."""
_ROW_SCORES = ("overall_score", "score", "rating", "reward", "helpfulness")
"""Columns with the score in data with one reply per row, in order of precedence; the last is HelpSteer's."""
_REPLY = ("response", "completion", "output", "answer")
_PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
_UNPAIRED = ("label", "labels", "kto_tag")


@dataclass(frozen=True, slots=True)
class Request:
    """What the replies answer: the task, earlier exchanges and the last user message."""

    goal: str
    history: tuple[Turn, ...]
    message: str


@dataclass(frozen=True, slots=True)
class ScoredReply:
    """A scored reply. `index` is its position in the row, or its row. `model` is the model that wrote it, if known."""

    text: str
    score: float
    index: int
    model: str | None = None

    def origin(self) -> dict[str, Any]:
        return {"index": self.index, "model": self.model, "score": self.score}


@dataclass(frozen=True, slots=True)
class Preference:
    """A request, the chosen reply, and the rejected replies, worst first.

    For scored data, `origin` names the replies used and the score; otherwise it is empty.
    """

    request: Request
    chosen: str
    rejected: tuple[str, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SingleReplyRow:
    """A row with one scored reply. It forms a pair with the other replies to its request."""

    request: Request
    reply: ScoredReply
    scored_by: str


def read_preference(row: Any, most_rejected: int = 1, index: int = 0) -> Preference | SingleReplyRow:
    """Read row `index`, keeping at most `most_rejected` rejected replies. Raises `UnusableRow` with the reason."""
    if not isinstance(row, Mapping):
        raise UnusableRow("not an object with named fields")
    for name in _NOT_SHOWN:
        if not is_empty(row.get(name)):
            raise UnusableRow(f"has {name!r}, which a pair cannot show")
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return _chosen_and_rejected(row)
    if row.get("completions") is not None:
        return _completions(row, most_rejected)
    return _one_reply(row, index)


def best_and_worst(request: Request, replies: Sequence[ScoredReply], most_rejected: int, scored_by: str) -> Preference:
    """Pair the best reply with up to `most_rejected` of the worst. Raises `UnusableRow` if several replies are best."""
    best = max((reply.score for reply in replies), default=0.0)
    chosen = [reply for reply in replies if reply.score == best]
    if len({normalise(reply.text) for reply in chosen}) != 1:
        raise UnusableRow("no reply is better than all others")
    worse = sorted((reply for reply in replies if reply.score < best), key=lambda reply: reply.score)
    if any(normalise(reply.text) == normalise(chosen[0].text) for reply in worse):
        raise UnusableRow("the same reply has two scores, one of them the best")
    unique: dict[str, ScoredReply] = {}
    for reply in worse:
        unique.setdefault(normalise(reply.text), reply)
    rejected = list(unique.values())[:most_rejected]
    if not rejected:
        raise UnusableRow("no reply is better than all others")
    origin = {
        "scored_by": scored_by,
        "chosen": chosen[0].origin(),
        "rejected": [reply.origin() for reply in rejected],
    }
    return _preference(request, chosen[0].text, [reply.text for reply in rejected], origin)


def _preference(request: Request, chosen: str, rejected: Sequence[str], origin: Mapping[str, Any]) -> Preference:
    if any(normalise(reply) == normalise(chosen) for reply in rejected):
        raise UnusableRow("chosen and rejected are the same")
    texts = (chosen, *rejected)
    if not all(reply.strip() for reply in texts):
        raise UnusableRow("a reply is empty")
    if tags := [tag for tag in OWN_TAGS if any(tag in reply for reply in texts)]:
        raise UnusableRow(f"a reply holds {tags[0]}, a tag of the answer format, so it cannot be chosen by its text")
    try:
        "".join((request.goal, *(text for turn in request.history for text in turn), request.message, *texts)).encode()
    except UnicodeEncodeError:
        raise UnusableRow("a string is not valid Unicode") from None
    return Preference(request, chosen, tuple(rejected), origin)


def _chosen_and_rejected(row: Mapping[str, Any]) -> Preference:
    chosen, rejected = (read_messages(row[name], name, ASSISTANT) for name in ("chosen", "rejected"))
    if chosen[-1].role != ASSISTANT or rejected[-1].role != ASSISTANT:
        raise UnusableRow("a reply does not end with the assistant")
    if _keys(chosen[:-1]) != _keys(rejected[:-1]):
        raise UnusableRow("chosen and rejected differ before their last message")
    _check_scores(row)
    request = _request(row, chosen[:-1], chosen[-1])
    return _preference(request, chosen[-1].text, [rejected[-1].text], {})


def _check_scores(row: Mapping[str, Any]) -> None:
    """Raise `UnusableRow` if the scores of a pair are equal or contradict its labels."""
    for better, worse in _PAIR_SCORES:
        high, low = _number(row.get(better)), _number(row.get(worse))
        if high is not None and low is not None and high <= low:
            problem = "are equal: a tie" if high == low else "say the opposite of chosen and rejected"
            raise UnusableRow(f"{better} and {worse} {problem}")


def _completions(row: Mapping[str, Any], most_rejected: int) -> Preference:
    completions = row["completions"]
    if isinstance(completions, str) or not isinstance(completions, Sequence):
        raise UnusableRow("completions is not a list")
    if not is_empty(row.get("labels")) and all(isinstance(step, str) for step in completions):
        raise UnusableRow("has labels of the steps of one solution (stepwise supervision), not several replies")
    names = {_score_name(completion) for completion in completions}
    if None in names:
        raise UnusableRow("a completion has no score")
    if len(names) > 1:
        raise UnusableRow("completions are scored by different fields")
    request = _request(row, [], None)
    replies = [_scored(completion, index) for index, completion in enumerate(completions)]
    preference = best_and_worst(request, replies, most_rejected, str(next(iter(names), "")))
    _check_agreement(preference, completions)
    return preference


def _check_agreement(preference: Preference, completions: Sequence[Mapping[str, Any]]) -> None:
    """Raise `UnusableRow` if the two scores of UltraFeedback disagree on the better completion.

    Some of its overall scores are 10 where the judge wrote 1, and the judge saw a different note with each completion.
    """
    if preference.origin["scored_by"] != _SCORES[0]:
        return
    chosen, *rejected = (
        _number(completions[origin["index"]].get(_SCORES[1]))
        for origin in (preference.origin["chosen"], *preference.origin["rejected"])
    )
    if chosen is not None and any(score is not None and score > chosen for score in rejected):
        raise UnusableRow(f"{_SCORES[0]} and {_SCORES[1]} disagree on which completion is better")


def _one_reply(row: Mapping[str, Any], index: int) -> SingleReplyRow:
    """Read a row with one reply. Raises `UnusableRow` if it has no score to compare it by."""
    name = next((name for name in _REPLY if not is_empty(row.get(name))), None)
    has_label = any(row.get(label) is not None for label in _UNPAIRED)
    if has_label and (name or not is_empty(row.get("messages")) or not is_empty(row.get("conversations"))):
        raise UnusableRow("is unpaired: one reply with a label, as for KTO; a pair needs two replies to one request")
    if name is None:
        raise UnusableRow("has neither chosen and rejected, nor completions, nor a reply with a score")
    scored_by = next((score for score in _ROW_SCORES if _number(row.get(score)) is not None), None)
    if scored_by is None:
        raise UnusableRow("has one reply and no score: nothing says which reply is better")
    reply = read_messages(row[name], name, ASSISTANT)
    if len(reply) != 1 or reply[0].role != ASSISTANT:
        raise UnusableRow(f"{name} is not one reply")
    score = _number(row[scored_by])
    assert score is not None
    return SingleReplyRow(_request(row, [], None), ScoredReply(reply[0].text, score, index, _model(row)), scored_by)


def _score_name(completion: Any) -> str | None:
    if not isinstance(completion, Mapping):
        raise UnusableRow("a completion is not an object with named fields")
    return next((name for name in _SCORES if _number(completion.get(name)) is not None), None)


def _scored(completion: Mapping[str, Any], index: int) -> ScoredReply:
    text = next((completion[name] for name in (*_REPLY, "content", "text") if not is_empty(completion.get(name))), None)
    score = _number(completion[str(_score_name(completion))])
    if not isinstance(text, str) or score is None:
        raise UnusableRow("a completion has no text")
    return ScoredReply(text, score, index, _model(completion))


def _model(reply: Mapping[str, Any]) -> str | None:
    model = reply.get("model")
    return model if isinstance(model, str) else None


def _number(value: Any) -> float | None:
    """Convert a number, also one stored as text; None if it is not a finite number."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) and not isinstance(value, bool) else None


def _request(row: Mapping[str, Any], beginning: list[Message], reply: Message | None) -> Request:
    """The request, combined from all prompt columns and the `beginning` that the labelled conversations share.

    `reply` is the chosen reply, which some data sets repeat at the end of `messages`.
    """
    systems, beginning = _split_systems(beginning)
    for name in _SYSTEMS:
        if not is_empty(system := row.get(name)):
            if not isinstance(system, str):
                raise UnusableRow(f"{name} is not a string")
            systems.append(system)
    results: dict[str, list[Message]] = {}
    for name, messages in _prompts(row, reply).items():
        leading, rest = _split_systems(messages)
        systems += leading
        results[name] = _joined(name, rest, beginning)
    messages = next(iter(results.values()), beginning)
    for name, other in results.items():
        if _keys(other) != _keys(messages):
            raise UnusableRow(f"{next(iter(results))} and {name} differ: unknown which of them was answered")
    if not messages and reply is not None:
        raise UnusableRow(
            "has no prompt: the replies begin alike, but nothing marks where a prompt would end; add a column 'prompt'"
        )
    if not messages:
        raise UnusableRow("has no prompt")
    messages = _after_history(row.get("history"), messages)
    if len({system.strip() for system in systems}) > 1:
        raise UnusableRow("has two different system messages")
    roles = [message.role for message in messages]
    if roles != [USER, *[ASSISTANT, USER] * (len(messages) // 2)]:
        raise UnusableRow("user and assistant do not take turns up to a last request")
    texts = [message.text for message in messages]
    if not texts[-1].strip():
        raise UnusableRow("the last request is empty")
    return Request(systems[0] if systems else GOAL, tuple(map(Turn, texts[:-1:2], texts[1::2])), texts[-1])


def _prompts(row: Mapping[str, Any], reply: Message | None) -> dict[str, list[Message]]:
    """Prompt column -> its messages."""
    columns = {name: read_messages(row[name], name, USER) for name in _PROMPTS if not is_empty(row.get(name))}
    if reply is not None and len(messages := columns.get("messages", [])) > 1 and messages[-1].key == reply.key:
        columns["messages"] = messages[:-1]
    if is_empty(row.get("input")):
        return columns
    if columns:
        if list(columns) != ["instruction"] or len(columns["instruction"]) > 1 or not isinstance(row["input"], str):
            raise UnusableRow(f"has 'input' next to {next(iter(columns))!r}: unknown how they form the request")
        # the same format as LLaMA-Factory's
        columns["instruction"] = [Message(USER, f"{columns['instruction'][0].text}\n{row['input']}")]
    else:
        columns["input"] = read_messages(row["input"], "input", USER)
    return columns


def _joined(name: str, prompt: list[Message], beginning: list[Message]) -> list[Message]:
    """Combine a prompt column with the beginning of the conversations. Either may hold more turns."""
    prompt_keys, beginning_keys = _keys(prompt), _keys(beginning)
    if any(
        beginning_keys[start : start + len(prompt_keys)] == prompt_keys
        for start in range(len(beginning_keys) - len(prompt_keys) + 1)
    ):
        return beginning
    if prompt_keys[len(prompt_keys) - len(beginning_keys) :] == beginning_keys:
        return prompt
    if prompt[-1].role == ASSISTANT and beginning[0].role == USER:
        return prompt + beginning
    raise UnusableRow(f"{name} begins differently from chosen and rejected")


def _after_history(history: Any, messages: list[Message]) -> list[Message]:
    """Prepend LLaMA-Factory's `history`, a list of pairs of request and reply."""
    if is_empty(history):
        return messages
    earlier: list[Message] = []
    for exchange in history if isinstance(history, list) else [history]:
        if not isinstance(exchange, Sequence) or isinstance(exchange, str) or len(exchange) != 2:
            raise UnusableRow("history is not a list of pairs of request and reply")
        if not all(isinstance(text, str) and text for text in exchange):
            raise UnusableRow("history has a request or a reply that is not a string, or empty")
        earlier += [Message(USER, exchange[0]), Message(ASSISTANT, exchange[1])]
    return messages if _keys(messages)[: len(earlier)] == _keys(earlier) else earlier + messages


def _split_systems(messages: list[Message]) -> tuple[list[str], list[Message]]:
    """Split off a leading system message: its text (if not empty), and the other messages."""
    if messages and messages[0].role == SYSTEM:
        return ([messages[0].text] if messages[0].text.strip() else []), messages[1:]
    return [], messages


def _keys(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [message.key for message in messages]
