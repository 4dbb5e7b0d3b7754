"""Conversations of preference data, in every common notation, as messages of a role and a text.

Read are texts, lists of messages (`role` and `content`, or ShareGPT's `from` and `value`), either of them as JSON text,
and dialogues in one text (HH-RLHF's `Human:` and `Assistant:`, HelpSteer's `<extra_id_1>`). Nothing of a message is
dropped: one that holds more than text (an image, a tool call, a thought of its own) is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
_ROLES = {
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), ASSISTANT),
}
_TOOL_ROLES = frozenset({"tool", "function", "function_call", "function_response", "observation", "ipython"})
_MORE_THAN_TEXT = {
    "tool_calls": "a call of a tool",
    "function_call": "a call of a tool",
    "tool_call_id": "a tool's answer",
    "reasoning_content": "a thought apart from its text",
    "reasoning": "a thought apart from its text",
    "thinking": "a thought apart from its text",
    "images": "an image",
    "videos": "a video",
    "audios": "audio",
    "audio": "audio",
}
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_PYTHON_LIST = re.compile(r"\[\s*\{\s*'")


class Unusable(ValueError):
    """Why a row gives no pair."""


class Message(NamedTuple):
    """`role` is `SYSTEM`, `USER` or `ASSISTANT`."""

    role: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """The form in which two messages are compared: data sets strip some copies of a text and not others."""
        return self.role, self.text.strip()


def is_empty(value: Any) -> bool:
    """Whether a column of a row holds nothing: null, NaN, no text, an empty list, or one of these as JSON text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value != value or (isinstance(value, Sequence | Mapping) and not value)


def read_messages(value: Any, field: str, role: str) -> list[Message]:
    """The messages of a column; a plain text is one message of `role`. Raises `Unusable` naming the `field`."""
    if isinstance(value, str):
        stored = _stored(value, field)
        if stored is None:
            return _dialogue(value) or [Message(role, value)]
        value = stored
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not value:
        raise Unusable(f"{field} is neither a text nor a list of messages")
    return [_message(message, field) for message in value]


def _stored(text: str, field: str) -> Any:
    """The messages that a text holds as JSON; None where it is any other text."""
    begin = text.lstrip()[:1]
    if begin not in ("[", "{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if _PYTHON_LIST.match(text.lstrip()):
            raise Unusable(f"{field} holds messages as Python writes them, not as JSON") from None
        return None
    messages = value if isinstance(value, list) else [value]
    is_conversation = messages and all(
        isinstance(message, dict) and ("role" in message or "from" in message) for message in messages
    )
    return messages if is_conversation else None


def _dialogue(text: str) -> list[Message]:
    """The turns of a dialogue in one text; none where it is any other text."""
    if _HH_TURN.match(text) and (text.startswith("\n\n") or "\n\nAssistant:" in text):
        _, *parts = _HH_TURN.split(text)
        speakers, texts = parts[::2], parts[1::2]
    elif _HELPSTEER_TURN.search(text):
        first, *parts = _HELPSTEER_TURN.split(text)
        speakers, texts = ["User", *parts[::2]], [first, *parts[1::2]]
    else:
        return []
    roles = (ASSISTANT if speaker == "Assistant" else USER for speaker in speakers)
    turns = [Message(role, said.strip()) for role, said in zip(roles, texts, strict=True)]
    return turns[:-1] if turns[-1] == (ASSISTANT, "") else turns  # `\n\nAssistant:` that the reply follows


def _message(message: Any, field: str) -> Message:
    if not isinstance(message, Mapping):
        raise Unusable(f"{field} has a message that is no object")
    for name, what in _MORE_THAN_TEXT.items():
        if not is_empty(message.get(name)):
            raise Unusable(f"{field} has a message with {name!r}: {what} cannot be shown in a pair")
    given = message.get("role", message.get("from"))
    role = given.lower() if isinstance(given, str) else ""
    if role in _TOOL_ROLES:
        raise Unusable(f"{field} has a message of the role {given!r}: tools cannot be shown in a pair")
    if role not in _ROLES:
        raise Unusable(f"{field} has a message of the role {given!r:.30}; known are {', '.join(_ROLES)}")
    return Message(_ROLES[role], _text(message.get("content", message.get("value")), field))


def _text(content: Any, field: str) -> str:
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        for part in parts:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise Unusable(f"{field} has a message with a part {kind!r:.30}: only text can be shown in a pair")
        return "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise Unusable(f"{field} has a message without text")
    return content
