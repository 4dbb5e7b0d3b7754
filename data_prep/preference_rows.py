"""One row of preference data, of any common form, as a request with a chosen and rejected replies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_act.parse import normalise
from verl_act.schema import Turn

GOAL = "Give the user the best reply."
"""The task where the conversation has no system message."""

_SCORES = ("overall_score", "fine-grained_score", "score", "rating")
"""Where UltraFeedback and its derivatives keep a reply's score, in this order."""


class Unusable(ValueError):
    """Why a row gives no pair."""


@dataclass(frozen=True, slots=True)
class Preference:
    """A request after `history`, the reply that people or a judge chose, and those they did not, worst first."""

    goal: str
    history: tuple[Turn, ...]
    request: str
    chosen: str
    rejected: tuple[str, ...]


def read_preference(row: Any, most_rejected: int = 1) -> Preference:
    """Read a row; at most `most_rejected` replies are kept. Raises `Unusable` with the reason."""
    if not isinstance(row, Mapping):
        raise Unusable("not an object with named fields")
    if row.get("completions") is not None:
        prompt, chosen, rejected = _scored(row)
    elif row.get("chosen") is not None and row.get("rejected") is not None:
        prompt, chosen, one_rejected = _chosen_and_rejected(row)
        rejected = [one_rejected]
    else:
        raise Unusable("has neither chosen and rejected nor completions")
    different = list({normalise(reply): reply for reply in rejected}.values())
    different = [reply for reply in different if normalise(reply) != normalise(chosen)]
    if not different:
        raise Unusable("chosen and rejected are the same")
    if not all(reply.strip() for reply in (chosen, *different)):
        raise Unusable("a reply is empty")
    goal, history, request = _conversation(prompt)
    try:
        "".join((goal, *(text for turn in history for text in turn), request, chosen, *different)).encode()
    except UnicodeEncodeError:
        raise Unusable("a text is not valid Unicode") from None
    return Preference(goal, history, request, chosen, tuple(different[:most_rejected]))


def _chosen_and_rejected(row: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str, str]:
    """Prompt messages, chosen reply, rejected reply."""
    chosen, rejected = _messages(row["chosen"], "chosen"), _messages(row["rejected"], "rejected")
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise Unusable("a reply does not end with the assistant")
    # Some data sets give the prompt as a field of its own and again as the beginning of both conversations.
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("chosen and rejected differ before their last message")
    prompt = chosen[:-1]
    if not prompt:
        if not row.get("prompt"):
            raise Unusable("has no prompt")
        prompt = _messages(row["prompt"], "prompt", role="user")
    return prompt, chosen[-1]["content"], rejected[-1]["content"]


def _scored(row: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str, list[str]]:
    """Prompt messages, the reply with the best score, and all with a lower one, worst first."""
    asked = row.get("instruction") or row.get("prompt")
    if not asked:
        raise Unusable("has no prompt")
    if not isinstance(row["completions"], Sequence):
        raise Unusable("completions is not a list")
    replies = [_scored_reply(reply) for reply in row["completions"]]
    best = max((score for score, _ in replies), default=0.0)
    chosen = [reply for score, reply in replies if score == best]
    worse = [reply for score, reply in sorted(replies, key=lambda scored: scored[0]) if score < best]
    if len(chosen) != 1 or not worse:
        raise Unusable("no reply is better than all others")
    return _messages(asked, "prompt", role="user"), chosen[0], worse


def _scored_reply(reply: Any) -> tuple[float, str]:
    if not isinstance(reply, Mapping):
        raise Unusable("a completion is not an object with named fields")
    text = reply.get("response", reply.get("content"))
    score = next((reply[name] for name in _SCORES if reply.get(name) is not None), None)
    try:
        number = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise Unusable("a completion has no score") from None
    if not isinstance(text, str) or not math.isfinite(number):
        raise Unusable("a completion has no text or no score")
    return number, text


def _messages(value: Any, field: str, role: str = "assistant") -> list[Mapping[str, Any]]:
    """A text or a list of messages as a list of messages with `role` and `content` alone."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, Sequence) or not value:
        raise Unusable(f"{field} is neither a text nor a list of messages")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise Unusable(f"{field} has a message without text")
    return [{"role": message.get("role"), "content": message["content"]} for message in value]


def _conversation(prompt: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[Turn, ...], str]:
    """Goal, earlier exchanges and the last request. Roles must alternate, after at most one system message."""
    goal = GOAL
    messages = list(prompt)
    if messages and messages[0]["role"] == "system":
        goal = messages.pop(0)["content"] or GOAL
    if len(messages) % 2 == 0 or [message["role"] for message in messages] != _alternating(len(messages)):
        raise Unusable("user and assistant do not take turns up to a last request")
    texts = [message["content"] for message in messages]
    return goal, tuple(map(Turn, texts[:-1:2], texts[1::2])), texts[-1]


def _alternating(count: int) -> list[str]:
    return [("user", "assistant")[number % 2] for number in range(count)]
