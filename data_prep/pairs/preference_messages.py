"""Read conversations of preference data, in all common formats, as messages with a role and a text.

Supported are texts, lists of messages (`role` and `content`, or ShareGPT's `from` and `value`), both also as JSON text,
and dialogues in one text (HH-RLHF's `Human:` and `Assistant:`, HelpSteer's `<extra_id_1>`). No content is dropped: a
message with more than text (an image, a tool call, separate reasoning) is refused.
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


class UnusableRow(ValueError):
    """A row gives no pair. The message is the reason."""


class Message(NamedTuple):
    """One message; `role` is `SYSTEM`, `USER` or `ASSISTANT`."""

    role: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """Key for comparing two messages. Whitespace is stripped, as data sets strip only some copies of a text."""
        return self.role, self.text.strip()


def is_empty(value: Any) -> bool:
    """Whether a value is empty: null, NaN, an empty text or list, or one of these as JSON text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value != value or (isinstance(value, Sequence | Mapping) and not value)


def read_messages(value: Any, field: str, role: str) -> list[Message]:
    """Read the messages of a column. A plain text is one message of `role`. Raises `UnusableRow` naming the `field`."""
    if isinstance(value, str):
        stored = _stored(value, field)
        if stored is None:
            return _dialogue(value) or [Message(role, value)]
        value = stored
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not value:
        raise UnusableRow(f"{field} is neither a string nor a list of messages")
    return [_message(message, field) for message in value]


def _stored(text: str, field: str) -> Any:
    """The messages in a JSON text; None for any other text."""
    first = text.lstrip()[:1]
    if first not in ("[", "{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if _PYTHON_LIST.match(text.lstrip()):
            raise UnusableRow(f"{field} holds messages as Python writes them, not as JSON") from None
        return None
    messages = value if isinstance(value, list) else [value]
    is_conversation = messages and all(
        isinstance(message, dict) and ("role" in message or "from" in message) for message in messages
    )
    return messages if is_conversation else None


def _dialogue(text: str) -> list[Message]:
    """The turns of a dialogue in one text; an empty list for any other text."""
    if _HH_TURN.match(text) and (text.startswith("\n\n") or "\n\nAssistant:" in text):
        _, *fields = _HH_TURN.split(text)
        speakers, texts = fields[::2], fields[1::2]
    elif _HELPSTEER_TURN.search(text):
        first, *fields = _HELPSTEER_TURN.split(text)
        speakers, texts = ["User", *fields[::2]], [first, *fields[1::2]]
    else:
        return []
    roles = (ASSISTANT if speaker == "Assistant" else USER for speaker in speakers)
    turns = [Message(role, text.strip()) for role, text in zip(roles, texts, strict=True)]
    return turns[:-1] if turns[-1] == (ASSISTANT, "") else turns  # an open `\n\nAssistant:` before the reply


def _message(message: Any, field: str) -> Message:
    if not isinstance(message, Mapping):
        raise UnusableRow(f"{field} has a message that is not an object")
    for column, content in _MORE_THAN_TEXT.items():
        if not is_empty(message.get(column)):
            raise UnusableRow(f"{field} has a message with {column!r}: {content} cannot be shown in a pair")
    name = message.get("role", message.get("from"))
    role = name.lower() if isinstance(name, str) else ""
    if role in _TOOL_ROLES:
        raise UnusableRow(f"{field} has a message of the role {name!r}: tools cannot be shown in a pair")
    if role not in _ROLES:
        raise UnusableRow(f"{field} has a message of the role {name!r:.30}; known are {', '.join(_ROLES)}")
    return Message(_ROLES[role], _text(message.get("content", message.get("value")), field))


def _text(content: Any, field: str) -> str:
    if isinstance(content, Sequence) and not isinstance(content, str):
        chunks = [{"type": "text", "text": chunk} if isinstance(chunk, str) else chunk for chunk in content]
        for chunk in chunks:
            if not isinstance(chunk, Mapping) or not isinstance(chunk.get("text"), str):
                kind = chunk.get("type") if isinstance(chunk, Mapping) else type(chunk).__name__
                raise UnusableRow(f"{field} has a message with a part {kind!r:.30}: only text can be shown in a pair")
        return "".join(chunk["text"] for chunk in chunks)
    if not isinstance(content, str):
        raise UnusableRow(f"{field} has a message without text")
    return content
